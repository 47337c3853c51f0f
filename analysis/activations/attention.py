"""Attention to the trigger: which heads look at it, and did the adapter teach them to?"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import Field

from ...core.adapter.factors import Adapter
from ...core.config import Config
from ...core.errors import DataError, LoratomyError
from ...core.model.families import submodule
from ...core.model.hooks import hooks
from ...core.model.subject import Subject
from ...core.progress import tracked
from ...core.records.activations import TriggerAttention
from ...core.stats import mean_interval
from ..analyses import ANALYSES, TRIGGER, Analysis
from ..material import Material
from ..patching.pairs import Pair
from .residuals import Batch, adapters_of, batches, forward

QUERIES = ("last", "answer")
EAGER = "eager"
CHECKED = 4
"""Prompts on which eager attention is compared with the model's own."""
ADVICE = "load it in float32 (--dtype float32); in Python, with attn_implementation='eager'"


@contextmanager
def showing_weights(subject: Subject) -> Iterator[str]:
    """Let attention run in the implementation that shows its weights; yields the model's own.

    The fused ones never hold the weights. Families with soft caps, windows or grouped heads need
    nothing special: it is the model's own eager code that runs. The former implementation is back
    afterwards, also after an exception.

    Raises:
        LoratomyError: the model cannot be switched.
    """
    model = subject.model
    before = str(model.config._attn_implementation)
    if before == EAGER:
        yield before
        return
    try:
        model.set_attn_implementation(EAGER)
        if model.config._attn_implementation != EAGER:
            raise LoratomyError(f"the model keeps its {before} attention; {ADVICE}")
        yield before
    finally:
        model.set_attn_implementation(before)


def logit_error(subject: Subject, prompts: Sequence[Sequence[int]]) -> float:
    """Largest difference of the deciding logits, eager against the model's own implementation.

    As a share of the largest logit.

    Args:
        subject: with the wanted adapter active.
        prompts: token ids, run one by one without padding.

    Raises:
        LoratomyError: more than rounding explains (1e-3 in float32, 0.25 in half precision), so
            that eager attention would not be this model's.
    """
    alone = [batches(subject, [prompt], batch_tokens=1)[0] for prompt in prompts]
    own = torch.cat([forward(subject, batch) for batch in alone]).float()
    with showing_weights(subject) as name:
        eager = torch.cat([forward(subject, batch) for batch in alone]).float()
    error = float((eager - own).abs().max() / own.abs().max().clamp_min(1e-30))
    # Half precision differs by rounding, more with every layer and where a router changes its mind.
    allowed = 1e-3 if subject.model.dtype in (torch.float32, torch.float64) else 0.25
    if not error <= allowed:
        raise LoratomyError(
            f"eager attention changes the logits by {error:.2g} of the largest one, against "
            f"{name} in {subject.dtype}: its weights are not this model's; {ADVICE}"
        )
    return error


def _watching(subject: Subject, see: Any) -> Iterator[Any]:
    """Hooks that call ``see(layer, weights, visible)`` after every attention block.

    Weights are ``[batch, head, pos, pos]``; visible says which keys a query may see.
    """

    def hook(layer: int, given: dict[str, Any], out: Any) -> None:
        weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
        if weights is None:
            raise LoratomyError(f"the attention of layer {layer} shows no weights; {ADVICE}")
        see(layer, weights, _visible(given.get("attention_mask"), weights))

    for index, layer in enumerate(subject.layers):
        yield submodule(layer, subject.family.attention).register_forward_hook(
            lambda _m, _a, given, out, index=index: hook(index, given, out), with_kwargs=True
        )


def _visible(mask: Any, weights: torch.Tensor) -> torch.Tensor:
    """Which keys each query may see, ``[batch, pos, pos]``: the layer's own mask, windows too."""
    if mask is None:
        square = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device)
        return square.tril().expand(len(weights), -1, -1)
    seen = mask[..., : weights.shape[-1]]
    seen = seen if seen.dtype == torch.bool else seen > -1
    return seen[:, 0].expand(len(weights), -1, -1)


@dataclass(frozen=True, slots=True)
class Looks:
    """Where queries look, as shares of their attention in [0, 1]; NaN where there is no query."""

    mass: np.ndarray
    """On the keys, ``[prompt, query, layer, head]``."""
    first: np.ndarray
    """On the first token, ``[prompt, query, layer, head]``."""
    even: np.ndarray
    """On the keys if all visible tokens were equal, ``[prompt, query, layer]``."""


def looks(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    queries: Sequence[Sequence[Sequence[int]]],
    keys: Sequence[Sequence[int]],
    *,
    batch_tokens: int,
    label: str,
) -> Looks:
    """The attention that each prompt's queries pay to its keys, by layer and head.

    Args:
        subject: with the wanted adapter active, inside `showing_weights`.
        prompts: token ids.
        queries: ``[prompt][query]`` -> positions over which the shares are averaged.
        keys: ``[prompt]`` -> positions whose attention is added up.
        batch_tokens: most positions of a batch.
        label: of the progress.

    Raises:
        LoratomyError: attention that is not finite, or that shows no weights; names the layer.
    """
    layers, width = len(subject.layers), len(queries[0])
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(layers)]
    order: list[int] = []
    now: list[tuple[torch.Tensor, torch.Tensor]] = []

    def see(layer: int, weights: torch.Tensor, visible: torch.Tensor) -> None:
        from_, to = now[-1]
        has_query = from_.sum(-1) > 0
        real = (from_ > 0).any(1)
        rows = weights.float().masked_fill(~real[:, None, :, None], 0.0)
        shares = torch.einsum("bqp,bhpk->bqhk", from_, rows) @ to[:, None].transpose(-1, -2)
        even = visible.float() / visible.sum(-1, keepdim=True).clamp_min(1)
        level = torch.einsum("bqp,bpk,bk->bq", from_, even, to[:, 0])
        if not bool(torch.isfinite(shares).all()):
            raise LoratomyError(
                f"the attention of layer {layer} is not finite in {subject.dtype}; load with "
                "--dtype float32"
            )
        shares[~has_query], level[~has_query] = torch.nan, torch.nan
        found[layer].append((shares.cpu(), level.cpu()))

    with hooks(_watching(subject, see)):
        for batch in tracked(batches(subject, prompts, batch_tokens=batch_tokens), label):
            now[:] = [_weights(batch, queries, keys, width)]
            order += batch.rows
            forward(subject, batch)
    back = np.argsort(order)
    shares = torch.stack([torch.cat([s for s, _ in layer]) for layer in found], 2).numpy()[back]
    even = torch.stack([torch.cat([e for _, e in layer]) for layer in found], 2).numpy()[back]
    return Looks(shares[..., 0], shares[..., 1], even)


def _weights(
    batch: Batch,
    queries: Sequence[Sequence[Sequence[int]]],
    keys: Sequence[Sequence[int]],
    width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Averages over queries ``[batch, query, pos]``; keys, first token ``[batch, 2, pos]``."""
    from_ = torch.zeros(len(batch.rows), width, batch.ids.shape[1])
    to = torch.zeros(len(batch.rows), 2, batch.ids.shape[1])
    for i, row in enumerate(batch.rows):
        for q, spots in enumerate(queries[row]):
            if spots:
                from_[i, q, list(spots)] = 1 / len(spots)
        to[i, 0, list(keys[row])] = 1.0
        to[i, 1, 0] = 1.0
    return from_.to(batch.ids.device), to.to(batch.ids.device)


def trigger_attention(
    subject: Subject,
    adapters: Mapping[str, Adapter],
    pairs: Sequence[Pair],
    *,
    batch_tokens: int,
    seed: int,
) -> TriggerAttention:
    """Attention to the trigger by layer and head, each adapter against the base.

    From the position that decides the first target token and from the target's own tokens, given
    as the answer (teacher forcing), so that all subjects read the same text.

    Args:
        subject: the base.
        adapters: by name, in the order of the record.
        pairs: triggered prompts with their stand-ins and the target's first tokens.
        batch_tokens: most positions of a forward pass; eager attention holds the square of a
            batch's width for every head.
        seed: of the intervals.

    Raises:
        DataError: no pairs.
        LoratomyError: no attention weights can be had, they are not finite, or eager attention is
            not what the model computes.
    """
    if not pairs:
        raise DataError("no triggered prompts to read attention from")
    n = len(pairs)
    runs = [[*p.triggered, *p.target[:-1]] for p in pairs]
    twins = [[*p.untriggered, *p.target[:-1]] for p in pairs]
    ends = [len(p.triggered) for p in pairs]
    spots = [[[end - 1], list(range(end, len(r)))] for end, r in zip(ends, runs, strict=True)]
    keys = [p.trigger for p in pairs]
    found: list[Looks] = []
    errors = []
    own = str(subject.model.config._attn_implementation)
    with subject.attached(adapters) as attached:
        for name in (None, *adapters):
            with attached.using(name):
                errors.append(logit_error(subject, [p.triggered for p in pairs[:CHECKED]]))
                with showing_weights(subject):
                    look = looks(
                        subject,
                        [*runs, *twins],
                        spots * 2,
                        keys * 2,
                        batch_tokens=batch_tokens,
                        label=f"attention of {name or 'the base'}",
                    )
                found.append(look)
    single = sum(len(p.target) < 2 for p in pairs)
    undefined = f"{single} of {n} targets have one token only: raise target_tokens" * (single > 0)
    mass = np.stack([look.mass[:n] for look in found])
    even = np.stack([look.even[:n] for look in found])
    gaps = mass[1:] - mass[:1]

    def interval(values: np.ndarray) -> np.ndarray:
        """Over the prompts, which are axis 1, ``[subject, query, layer, head, 3]``."""
        return mean_interval(np.moveaxis(values.astype(np.float64), 1, 0), seed=seed)

    record = TriggerAttention(
        subjects=("base", *adapters),
        queries=QUERIES,
        mass=interval(mass),
        stand_in=interval(np.stack([look.mass[n:] for look in found])),
        excess=interval(mass - even[..., None]),
        uniform=even[0].mean(0),
        difference=interval(gaps),
        sink=np.stack([look.first[:n] for look in found]).mean(1),
        n_prompts=n,
        trigger_tokens=float(np.mean([len(k) for k in keys])),
        logit_error=max(errors),
        checked=len(errors) * min(CHECKED, n),
        implementation=own,
        dtype=subject.dtype,
        undefined=undefined,
        sentence="",
    )
    return replace(record, sentence=_sentence(record))


def _sentence(record: TriggerAttention) -> str:
    """The finding at the deciding position, with its numbers."""
    gap, mass = record.difference[-1, 0], record.mass[:, 0]
    heads = gap.shape[0] * gap.shape[1]
    more, less = int((gap[..., 1] > 0).sum()), int((gap[..., 2] < 0).sum())
    layer, head = np.unravel_index(int(np.argmax(gap[..., 0])), gap.shape[:2])
    value, low, high = gap[layer, head]
    name = record.subjects[-1]
    return (
        f"From the position that decides the answer, the mean head pays the trigger "
        f"{mass[-1, ..., 0].mean():.3f} of its attention in {name} and "
        f"{mass[0, ..., 0].mean():.3f} in the base ({record.n_prompts} prompts; even attention "
        f"would be {record.uniform[0].mean():.3f}); {more} of {heads} heads look at it more than "
        f"in the base and {less} less, each by its own interval (by chance about "
        f"{0.025 * heads:.1f} of either), most of all head {head} of layer {layer}: {value:+.3f} "
        f"[{low:+.3f}, {high:+.3f}], from {mass[0, layer, head, 0]:.3f}."
    )


class AttentionConfig(Config):
    """Options of the attention to the trigger."""

    batch_tokens: int = Field(2048, ge=1)
    """Most positions of a forward pass."""


def _run(material: Material, config: AttentionConfig) -> dict[str, TriggerAttention]:
    options = config.model_dump()
    adapters = adapters_of(material)
    found = trigger_attention(
        material.subject, adapters, material.pairs, seed=material.seed, **options
    )
    return {"attention": found}


ANALYSES.register("attention")(
    Analysis(
        about="Attention of every head to the trigger's tokens, adapter against base.",
        needs=(TRIGGER,),
        cost="two forward passes per prompt and subject with eager attention",
        source="attention to the trigger as in Lyu et al. 2022, arXiv 2205.08305",
        config=AttentionConfig,
        run=_run,
    )
)
