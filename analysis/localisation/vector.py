"""Does a vector of a few heads' outputs at the last prompt token carry the backdoor?

Backdoor attribution (arXiv 2509.21761) sums the mean outputs of the heads with the highest causal
effect: added once while the prompt is read it brings the target about without a trigger,
subtracted it takes it away with one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from ...core.config import Config
from ...core.errors import DataError, LoratomyError
from ...core.model.families import submodule
from ...core.model.hooks import hooks
from ...core.model.subject import Attached, Subject
from ...core.records.results import Answer
from ...core.records.vector import HeadVector, Steered
from ...core.rows import Row
from ...core.stats import wilson
from ...evaluation.behaviour import scored
from ...evaluation.collect import Rule, check_targets, unjudged
from ...evaluation.generation import Decoding, generate
from ..activations.residuals import Batch, stream
from ..analyses import ANALYSES, TRIGGER, Analysis
from ..material import Material
from ..patching.engine.batching import budget
from ..patching.engine.sweep import sweep
from ..patching.pairs import Pair, make_pairs
from ..patching.planning import PatchingConfig, planned
from ..patching.sites import Place, places
from .steering import added_at_prompt_end

VECTOR, DIRECTION, HEADS = "vector", "random direction", "random heads"


class VectorConfig(Config):
    """Options of the vector; the share of heads is the published one."""

    share: float = Field(32 / 1024, gt=0, le=1)
    """Share of all heads that make the vector, at least one head (published: 32 of 1024)."""
    minus: Literal["nothing", "untriggered"] = "nothing"
    """What is subtracted from the heads' mean output on triggered prompts: nothing, as published,
    or their mean output on the same prompts without trigger."""
    scale: float = 1.0
    """What the vector is multiplied by (published: 1)."""
    judged: int = Field(24, ge=1)
    """Prompts that the vector is tried on, none of which made it."""
    new_tokens: int = Field(24, ge=1)
    """Tokens of each answer; more if the attack's own are longer, at most those of compare."""


def head_effects(attached: Attached, name: str, pairs: Sequence[Pair]) -> np.ndarray:
    """What each head does for the target at the last prompt token, nats, ``[layer, head]``.

    The drop of the target's log-probability on the triggered prompt when the head's z at that token
    alone is that of the untriggered twin, mean over prompts.

    Args:
        attached: base and adapters.
        name: the adapter.
        pairs: triggered prompts with untriggered twins.
    """
    subject = attached.subject
    config = PatchingConfig(pairs="prompt", sites="z", memory=None)
    plan = planned(subject, pairs, None, name, "prompt", config)
    last = [[[_end(subject, pair.row) - 1]] for pair in pairs]
    found = sweep(
        subject, attached, replace(plan.what, columns=last), places(subject, attached, ["z"]),
        memory=budget(subject, None), layers=plan.layers, label="heads at the last prompt token",
    )  # fmt: skip
    change = found.into[None, :, None] - found.patched[..., 0]
    return change.mean(1).T


def _end(subject: Subject, row: Row) -> int:
    """Tokens of a rendered prompt, without what comes before the target in an answer."""
    return len(subject.renderer.prompt_ids(row))


def mean_z(subject: Subject, prompts: Sequence[list[int]], *, batch_tokens: int) -> torch.Tensor:
    """Mean input of each layer's output projection at the last token, ``[layer, width]``, float64.

    Args:
        subject: with the adapter active.
        prompts: token ids.
        batch_tokens: most positions of a batch.
    """
    sums: dict[int, torch.Tensor] = {}
    now: list[Batch] = []

    def see(level: int, _hidden: torch.Tensor, batch: Batch) -> None:
        if level == 0:
            now[:] = [batch]

    def adding(layer: int) -> Callable[[Any, Any], None]:
        def add(_module: Any, args: Any) -> None:
            z = args[0].view(*now[0].ids.shape, -1)
            ends = now[0].mask.sum(1) - 1
            own = z[torch.arange(len(ends), device=z.device), ends].double().sum(0).cpu()
            sums[layer] = sums[layer] + own if layer in sums else own

        return add

    handles = (
        submodule(layer, subject.family.out_proj).register_forward_pre_hook(adding(i))
        for i, layer in enumerate(subject.layers)
    )
    with hooks(handles):
        stream(subject, prompts, see, batch_tokens=batch_tokens, label="heads' mean output")
    return torch.stack([sums[i] for i in range(len(subject.layers))]) / len(prompts)


def written(
    subject: Subject, z: torch.Tensor, at: Sequence[Place], heads: np.ndarray
) -> dict[int, torch.Tensor]:
    """What some heads write through their layers' output projection, by layer, ``[d_model]``.

    Each head's part of z goes through its slice of ``W_O``, the active adapter included; biases
    are no head's.

    Args:
        subject: with the adapter active.
        z: ``[layer, width]``.
        at: the heads' places, in order.
        heads: layer and number of each, ``[picked, (layer, head)]``.
    """
    out = {}
    for layer in np.unique(heads[:, 0]).tolist():
        mine = torch.zeros_like(z[layer])
        for number in heads[heads[:, 0] == layer, 1].tolist():
            mine[at[number].part] = z[layer, at[number].part]
        module: Any = submodule(subject.layers[layer], subject.family.out_proj)
        both = torch.stack([mine, torch.zeros_like(mine)])[:, None]
        with torch.inference_mode():
            wrote = module(both.to(subject.device, subject.model.dtype)).double()
        out[layer] = (wrote[0, 0] - wrote[1, 0]).cpu()
    return out


@dataclass(frozen=True, slots=True)
class _Trial:
    """Answers to prompts that did not make the vector, under any vector."""

    attached: Attached
    name: str
    rows: Sequence[Row]
    rule: Rule
    decoding: Decoding

    def condition(
        self, triggered: bool, vector: str, sign: int, given: dict[int, torch.Tensor]
    ) -> Steered:
        """The answers with a vector added or subtracted at the end of the prompt."""
        subject = self.attached.subject
        questions = self.rows if triggered else [row.untriggered() for row in self.rows]
        ids = [subject.renderer.prompt_ids(row) for row in questions]
        signed = {layer: sign * v for layer, v in given.items()}
        with self.attached.using(self.name), added_at_prompt_end(subject, signed):
            out = generate(subject, ids, self.decoding, label=f"answers, {vector}")
        answers = self._scored([samples[0] for samples in out])
        hits = [a.hit for a in answers]
        sick = [a.scores["degenerate"] >= 1 for a in answers]
        return Steered(
            triggered=triggered,
            vector=vector,
            sign=sign,
            rate=wilson(sum(hits), len(hits)),
            degenerate=wilson(sum(sick), len(sick)),
            example=answers[0].answer,
        )

    def _scored(self, answers: Sequence[list[int]]) -> list[Answer]:
        decode = self.attached.subject.renderer.decode
        unscored = [
            unjudged(row, i, decode(tokens), len(tokens))
            for i, (row, tokens) in enumerate(zip(self.rows, answers, strict=True))
        ]
        return scored(unscored, self.rule)


def head_vector(
    attached: Attached,
    name: str,
    pairs: Sequence[Pair],
    judged: Sequence[Row],
    rule: Rule,
    *,
    config: VectorConfig,
    seed: int,
) -> HeadVector:
    """The vector of the strongest heads, and what it does to prompts that did not make it.

    It is written where heads write: each layer's part at the output of that layer's attention
    projection, at the last prompt token, once while the prompt is read.

    Args:
        attached: base and adapters.
        name: the adapter that answers.
        pairs: triggered prompts with untriggered twins, which make the vector.
        judged: other triggered rows, with their form without trigger.
        rule: how answers are judged.
        config: how many heads, what is subtracted, how long answers are.
        seed: of the controls.

    Raises:
        DataError: no prompts on a side.
        LoratomyError: every head is in the vector, so that no other could be a control.
    """
    if not pairs or not judged:
        raise DataError(
            f"the vector needs prompts that make it and others that it is tried on; there are "
            f"{len(pairs)} and {len(judged)}"
        )
    check_targets(judged, rule.success)
    subject = attached.subject
    effect = head_effects(attached, name, pairs)
    order = np.argsort(-effect, axis=None, kind="stable")
    count = max(1, round(config.share * effect.size))
    if 2 * count > effect.size:
        raise LoratomyError(
            f"{count} of {effect.size} heads leave no as many others for the control; lower share"
        )
    at = np.stack(np.unravel_index(order, effect.shape), 1)
    rng = np.random.default_rng(seed)
    heads, others = at[:count], at[count:][rng.choice(effect.size - count, count, replace=False)]
    vectors = _vectors(attached, name, pairs, (heads, others), rule, config, seed)
    longest = max(len(subject.renderer.completion_ids(r.completion or "")) for r in judged)
    most = min(rule.decoding.max_new_tokens, max(config.new_tokens, longest))
    decoding = replace(rule.decoding, max_new_tokens=most, temperature=0.0, top_p=1.0, samples=1)
    trial = _Trial(attached, name, judged, rule, decoding)
    conditions = tuple(
        trial.condition(triggered, vector, (-1 if triggered else 1) * bool(given), given)
        for triggered in (False, True)
        for vector, given in {"none": {}, **vectors}.items()
    )
    record = HeadVector(
        adapter=name,
        effect=effect,
        heads=heads,
        random_heads=others,
        norm=_norms(vectors[VECTOR], len(subject.layers)),
        random_heads_norm=_norms(vectors[HEADS], len(subject.layers)),
        minus=config.minus,
        scale=config.scale,
        made_from=len(pairs),
        conditions=conditions,
        rule=rule.success[0].text,
        decoding=decoding.text(),
        dtype=subject.dtype,
        sentence="",
    )
    return replace(record, sentence=sentence_of(record))


def _vectors(
    attached: Attached,
    name: str,
    pairs: Sequence[Pair],
    picked: tuple[np.ndarray, np.ndarray],
    rule: Rule,
    config: VectorConfig,
    seed: int,
) -> dict[str, dict[int, torch.Tensor]]:
    """The vector and its two controls, each by layer, ``[d_model]`` in float64."""
    subject, at_once = attached.subject, rule.decoding.batch_tokens // 4
    rows, at = [pair.row for pair in pairs], places(attached.subject, attached, ["z"])
    with attached.using(name):
        ids = [subject.renderer.prompt_ids(row) for row in rows]
        z = mean_z(subject, ids, batch_tokens=at_once)
        if config.minus == "untriggered":
            plain = [subject.renderer.prompt_ids(row.untriggered()) for row in rows]
            z = z - mean_z(subject, plain, batch_tokens=at_once)
        made = [
            {k: config.scale * v for k, v in written(subject, z, at, heads).items()}
            for heads in picked
        ]
    generator = torch.Generator().manual_seed(seed)
    random = {}
    for layer, v in made[0].items():
        noise = torch.randn(len(v), generator=generator).double()
        random[layer] = noise * (v.norm() / noise.norm())
    return {VECTOR: made[0], DIRECTION: random, HEADS: made[1]}


def _norms(vector: dict[int, torch.Tensor], depth: int) -> np.ndarray:
    return np.array([float(vector[i].norm()) if i in vector else 0.0 for i in range(depth)])


def _words(item: Steered) -> str:
    rate = item.rate
    return f"{100 * rate.value:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def sentence_of(item: HeadVector) -> str:
    """Whether the vector suffices and is needed, next to its controls, in words."""
    parts = []
    for triggered, verb, finding, not_found in (
        (False, "added to untriggered prompts", "suffices", "does not clearly suffice"),
        (True, "subtracted from triggered prompts", "is needed", "is not clearly needed"),
    ):
        plain, found, *controls = (
            item.of(triggered, name) for name in ("none", VECTOR, DIRECTION, HEADS)
        )
        moved = [found, plain] if not triggered else [plain, found]
        sure = moved[0].rate.low > moved[1].rate.high and all(
            found.rate.low > c.rate.high if not triggered else found.rate.high < c.rate.low
            for c in controls
        )
        parts.append(
            f"{verb} it takes target behaviour from {_words(plain)} to {_words(found)} (a random "
            f"direction of the same norm: {_words(controls[0])}, as many random heads: "
            f"{_words(controls[1])}): it {finding if sure else not_found}"
        )
    return (
        f"The vector of {len(item.heads)} of {item.effect.size} heads, made from {item.made_from} "
        f"prompts and tried on {item.conditions[0].rate.n} others: {parts[0]}; {parts[1]}."
    )


def _run(material: Material, config: VectorConfig) -> dict[str, HeadVector]:
    rows = [row for row in material.triggered if row.plain is not None]
    made = min(material.prompts, len(rows) // 2)
    subject = material.subject
    if not made:
        raise DataError(
            f"the vector needs two triggered prompts with their form without trigger, there are "
            f"{len(rows)} of {len(material.triggered)}"
        )
    pairs = make_pairs(
        subject.renderer, rows[:made], target_tokens=material.target_tokens, seed=material.seed
    )
    with subject.attached(material.adapters) as attached:
        found = head_vector(
            attached,
            "poisoned",
            pairs,
            rows[made : made + config.judged],
            material.rule,
            config=config,
            seed=material.seed,
        )
    return {"vector": found}


ANALYSES.register("vector")(
    Analysis(
        about="Whether a few heads' outputs at the last prompt token suffice and are needed.",
        needs=(TRIGGER,),
        cost="each head patched at one token, then eight short answers to each prompt",
        source="backdoor attribution, arXiv 2509.21761",
        config=VectorConfig,
        run=_run,
    )
)
