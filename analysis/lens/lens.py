"""The adapter lens: which tokens an adapter's directions listen for, and which they write."""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field

from ...core.adapter.factors import Adapter, layer_of
from ...core.config import Config
from ...core.model.subject import Subject
from ...core.progress import tracked
from ...core.records.lens import Lens, Preference
from ...core.records.patching import Where
from ..activations.residuals import Prompts
from ..analyses import ANALYSES, CLEAN_ROWS, Analysis
from ..material import Material
from .directions import Chosen, choose
from .inputs import internal, known_tokens
from .preference import preferences, token_text
from .reading import listening_strength
from .scores import Part, Scores, on_prompts, on_vocabulary, score
from .writing import Writer, writing_strength

RANDOM = 32
"""Random directions per module behind the null; each has two ends."""


def listening(subject: Subject, adapter: Adapter, *, batch_tokens: int = 8192) -> np.ndarray:
    """How strongly an adapter listens for each token, ``[d_vocab]``; NaN for ids without a token.

    1 is what a random direction gets, see `loratomy.analysis.lens.reading.listening_strength`.
    """
    return listening_strength(subject, adapter, batch_tokens=batch_tokens).values


def writing(subject: Subject, adapter: Adapter) -> np.ndarray:
    """How strongly an adapter writes each token, ``[d_vocab]``; NaN for ids without a token.

    1 is what a random direction gets, see `loratomy.analysis.lens.writing.writing_strength`.
    """
    return writing_strength(subject, adapter).values


def lens(
    subject: Subject,
    adapter: Adapter,
    prompts: Prompts,
    *,
    where: Where | None = None,
    clean: Adapter | None = None,
    trigger: Sequence[int] = (),
    target: Sequence[int] = (),
    triggered: int = 0,
    count: int,
    top: int,
    batch_tokens: int,
    seed: int,
) -> Lens:
    """What an adapter's strongest directions listen for and write, token by token.

    Queries, keys, values, gates and what multiplies them read the normed residual stream: they are
    shown every token of the vocabulary. Output projections read what their block has gathered:
    they are shown the prompts. See `loratomy.analysis.lens.scores` and
    `loratomy.analysis.lens.writing` for the two scores.

    Args:
        subject: the base, without adapter.
        adapter: what is read.
        prompts: token ids, clean ones and, where a trigger is known, triggered ones.
        where: the ranking of directions by their effect; None: by singular value.
        clean: a clean adapter to compare with.
        trigger: ids of the trigger's tokens, where it is known.
        target: ids of the targets' first tokens, where they are known.
        triggered: how many of the prompts carry it.
        count: directions to look at.
        top: tokens named for each end.
        batch_tokens: most positions in a forward pass.
        seed: of the random directions.

    Raises:
        DataError: no prompts, or a ranking of another adapter.
        AdapterError: the adapter changes nothing.
    """
    chosen = choose(adapter, where, count=count)
    tokens = known_tokens(subject)
    generator = torch.Generator().manual_seed(seed)
    read = _read(subject, adapter, chosen, prompts, tokens, top, batch_tokens, generator)
    writer = Writer(subject, adapter)
    written, heads = _write(writer, chosen, tokens, top, generator)
    _turn(read, written)
    sides = preferences(
        subject, adapter, clean, trigger=trigger, target=target, batch_tokens=batch_tokens
    )
    silent = tuple(writer.reason(name) for name in chosen.names)
    sizes = len(prompts), triggered
    return _record(subject, chosen, where is not None, read, written, heads, silent, sides, sizes)


def _record(
    subject: Subject,
    chosen: Chosen,
    ranked: bool,
    read: list[Scores],
    written: list[Scores],
    heads: np.ndarray,
    silent: tuple[str, ...],
    sides: tuple[Preference, Preference],
    sizes: tuple[int, int],
) -> Lens:
    numbered = zip(chosen.names, chosen.expert, strict=True)
    return Lens(
        chosen_by="effect" if ranked else "singular value",
        modules=tuple(name if e < 0 else f"{name}#e{e}" for name, e in numbered),
        layers=np.array([layer_of(name) for name in chosen.names]),
        place=chosen.place,
        sigma=chosen.sigma,
        effect=chosen.effect,
        read_from=tuple(
            "prompts" if internal(subject, name) else "vocabulary" for name in chosen.names
        ),
        listens=tuple(_texts(subject, s.ids) for s in read),
        listen_scores=np.array([s.values for s in read]),
        listen_null=np.array([s.null for s in read]),
        writes=tuple(_texts(subject, s.ids) for s in written),
        write_scores=np.array([s.values for s in written]),
        write_null=np.array([s.null for s in written]),
        write_head=heads,
        writes_nothing=silent,
        listening=sides[0],
        writing=sides[1],
        prompts=sizes[0],
        triggered=sizes[1],
    )


def _texts(subject: Subject, ids: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """Texts of ``[end, top]`` ids; -1 is left out."""
    return tuple(tuple(token_text(subject, i) for i in end if i >= 0) for end in ids)


def _parts(chosen: Chosen, keep: Sequence[int]) -> dict[Part, list[int]]:
    """Directions by module and expert."""
    out: dict[Part, list[int]] = {}
    for i in keep:
        out.setdefault((chosen.names[i], int(chosen.expert[i])), []).append(i)
    return out


def _beside(vectors: list[torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Unit vectors with `RANDOM` random ones after them, ``[direction + random, d]``."""
    drawn = torch.randn(RANDOM, len(vectors[0]), generator=generator)
    return torch.cat([torch.stack(vectors), drawn / drawn.norm(dim=-1, keepdim=True)])


def _read(
    subject: Subject,
    adapter: Adapter,
    chosen: Chosen,
    prompts: Prompts,
    tokens: np.ndarray,
    top: int,
    batch_tokens: int,
    generator: torch.Generator,
) -> list[Scores]:
    """What each direction listens for, ``[direction]``."""
    out: dict[int, Scores] = {}
    inside = [internal(subject, name) for name in chosen.names]
    for within in (False, True):
        groups = _parts(chosen, [i for i, is_in in enumerate(inside) if is_in == within])
        vectors = {p: _beside([chosen.v[i] for i in g], generator) for p, g in groups.items()}
        if within:
            with subject.attached({"lens": adapter}):
                ids, found = on_prompts(
                    subject, adapter, vectors, prompts, batch_tokens=batch_tokens
                )
        else:
            ids, found = tokens, on_vocabulary(subject, vectors, tokens, batch_tokens=batch_tokens)
        for part, group in groups.items():
            scores = score(found.pop(part), len(group), ids, top=top)
            out |= {i: scores.only(k) for k, i in enumerate(group)}
    return [out[i] for i in range(len(inside))]


def _write(
    writer: Writer,
    chosen: Chosen,
    tokens: np.ndarray,
    top: int,
    generator: torch.Generator,
) -> tuple[list[Scores], np.ndarray]:
    """What each direction writes, ``[direction]``, and through which attention head."""
    nothing = Scores(np.full((2, top), -1), np.full((2, top), np.nan), np.nan)
    out, heads = [nothing] * len(chosen.names), np.full(len(chosen.names), -1)
    keep = [i for i, name in enumerate(chosen.names) if not writer.reason(name)]
    for (name, _), group in tracked(list(_parts(chosen, keep).items()), "what directions write"):
        found = writer.written(name, _beside([chosen.u[i] for i in group], generator))
        scores = score(found.logits.T[tokens], len(group), tokens, top=top)
        for k, i in enumerate(group):
            out[i], heads[i] = scores.only(k), int(found.head[k])
    return out, heads


def _turn(read: list[Scores], written: list[Scores]) -> None:
    """Turn directions in place so that end 0 is the one that stands out more among what is read."""
    for i, scores in enumerate(read):
        if scores.values[1, 0] > scores.values[0, 0]:
            read[i], written[i] = scores.turned(), written[i].turned()


class LensConfig(Config):
    """Options of the adapter lens."""

    directions: int = Field(42, ge=1)
    """Directions to look at."""
    top: int = Field(8, ge=1)
    """Tokens named for each end of a direction."""
    batch_tokens: int = Field(8192, ge=1)
    """Most positions in a forward pass."""


def _run(material: Material, config: LensConfig) -> dict[str, Lens]:
    ranked = next((r for r in material.records.get("where", ()) if isinstance(r, Where)), None)
    known = material.targets if material.triggered else []
    prompts = [e.prompt + e.completion for e in (*material.encoded_clean, *known)]
    trigger = (
        [p.triggered[i] for p in material.pairs for i in p.trigger] if material.triggered else []
    )
    record = lens(
        material.subject,
        material.poisoned,
        prompts,
        where=ranked,
        clean=material.clean,
        trigger=trigger,
        target=[token for e in known for token in e.completion],
        triggered=len(known),
        count=config.directions,
        top=config.top,
        batch_tokens=config.batch_tokens,
        seed=material.seed,
    )
    return {"lens": record}


ANALYSES.register("lens")(
    Analysis(
        about="Tokens that the adapter's directions read, and tokens that they write.",
        needs=(CLEAN_ROWS,),
        cost="two to three passes over the whole vocabulary, each token after one other",
        source="logit lens, nostalgebraist 2020; reading weights in vocabulary space, Dar et al. "
        "2022, arXiv 2209.02535",
        config=LensConfig,
        combines=("where",),
        run=_run,
    )
)
