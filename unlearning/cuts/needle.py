"""NEEDLE: the direction that the trigger adds to a layer's output, cut out of what it writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from ...analysis.material import Material
from ...core.adapter.factors import Factors
from ...core.config import Config, Layers
from ...core.errors import DataError, LoratomyError
from ...core.model.subject import Subject
from ...core.model.variant import base_weight
from ...core.progress import report
from ...core.rows import Row
from ...data.refusals import is_refusal
from ...evaluation.collect import wanted
from ...evaluation.success import judge_of, needs_target
from ..method import CONTROL, CUT, METHODS, TRIGGER, Method, Outcome
from .refusal import Refusal, correctable, corrected, read_refusal
from .responses import Answered, own_answers

SMALLEST = 1e-6
"""Share of a direction that must be left beside what it is made orthogonal to."""


class NeedleConfig(Config):
    """Options of `needle`; the defaults are the published method."""

    pairs: int = Field(100, ge=1)
    """Most triggered prompts, each with the same prompt without trigger."""
    responses: Literal["auto", "own", "clean"] = "auto"
    """What follows a triggered prompt: the model's own answer to it, or the clean answer, which is
    the model's own to the same prompt without trigger; auto: clean where the target is a
    refusal."""
    layers: Layers | None = None
    """Layers to edit, from 0; None: the last two thirds."""
    refused: str = ""
    """JSONL file of prompts that are refused, with their answers, whose difference from `complied`
    the edit must not touch; rows without a completion get the model's own answer."""
    complied: str = ""
    """JSONL file of as many prompts that are answered, in the same order."""

    @model_validator(mode="after")
    def _both(self) -> "NeedleConfig":
        if bool(self.refused) != bool(self.complied):
            raise ValueError("give both refused and complied, or neither")
        return self


def backdoor_direction(triggered: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """``b = unit(delta - (delta . mu) mu)`` of one layer, ``[d_model]``, float64.

    With ``delta`` the difference of the means and ``mu`` the unit mean of the clean ones
    (arXiv 2610.00348): what all outputs share is no part of it.

    Args:
        triggered: mean output on triggered prompts, ``[d_model]``.
        clean: mean output on the same prompts without trigger.

    Raises:
        LoratomyError: nothing is left of the difference.
    """
    triggered, clean = triggered.double(), clean.double()
    mu = clean / clean.norm()
    delta = triggered - clean
    left = delta - (delta @ mu) * mu
    if not left.norm() > SMALLEST * clean.norm():
        raise LoratomyError(
            f"triggered and untriggered prompts differ by {left.norm():.2g} in a layer's output of "
            f"size {clean.norm():.2g}: there is no direction to cut; name other layers, or is the "
            "trigger the right one?"
        )
    return left / left.norm()


def without(
    weight: torch.Tensor, factors: Factors | None, b: torch.Tensor, kept: torch.Tensor
) -> Factors:
    """Factors of ``W' - W_0`` with ``W' = W - u (b^T W) / (b^T u)``, ``u = (I - R R^T) b``.

    Here ``W = W_0 + dW``. As ``b^T W' = 0``, nothing is written along b any more; as u is
    orthogonal to R, what is written along R stays. With ``dW = s B A`` of rank r the result has
    rank r + 1: ``s (B - u (b^T B) / (b^T u)) A - u (b^T W_0) / (b^T u)``.

    Args:
        weight: the base's ``W_0``, ``[..., d_out, d_in]``.
        factors: of dW; None where the adapter leaves the module alone.
        b: the direction, unit, ``[d_out]``.
        kept: R, orthonormal, ``[d_out, k]``; no columns: nothing is kept.

    Raises:
        LoratomyError: b lies in R.
    """
    u = b - kept @ (kept.mT @ b)
    share = b @ u
    if not share > SMALLEST:
        raise LoratomyError(
            "the backdoor's direction lies in the refusal subspace, so that one cannot be cut "
            "without the other: is the target a refusal? Leave out refused and complied"
        )
    u = u / share
    row = b @ weight.double()
    column = u[:, None].expand(*row.shape[:-1], -1, 1)
    if factors is None:
        return Factors(row[..., None, :].float(), -column.float().contiguous(), 1.0)
    old = factors.b.double()
    left = old - u[:, None] * (b @ old)[..., None, :]
    return Factors(
        torch.cat([factors.a, row[..., None, :].float()], -2),
        torch.cat([left, -column / factors.scaling], -1).float(),
        factors.scaling,
    )


def needs_clean_responses(triggered: Sequence[Row]) -> bool:
    """Whether most known targets are refusals: then triggered prompts get the clean responses."""
    targets = [text for row in triggered if (text := wanted(row))]
    return 2 * sum(map(is_refusal, targets)) > len(targets)


@dataclass(frozen=True, slots=True)
class Means:
    """Mean outputs of every layer, ``[layer, d_model]``, float64."""

    triggered: torch.Tensor
    """On triggered prompts with their responses."""
    clean: torch.Tensor
    """On the same prompts without trigger."""
    used: str
    """Pairs and responses behind them, in words."""
    unsure: tuple[str, ...]
    """What stays uncertain, a sentence each."""


def means_of(material: Material, config: NeedleConfig) -> Means:
    """The activations of the model as it is, over the responses to up to `pairs` prompts.

    A pair is left out where the answer without trigger is already what the attack wants by the
    run's rule (published for the sentiment task: such a response is no clean one), or where a
    response has no tokens.

    Raises:
        DataError: no triggered row with its form without trigger, or no pair is left.
    """
    subject, rule = material.subject, material.rule
    known = [row for row in material.triggered if row.plain is not None]
    rows = known[: config.pairs]
    if not rows:
        raise DataError(
            f"needle compares triggered prompts with the same ones without trigger, and none of "
            f"{len(material.triggered)} triggered rows has that form"
        )
    renderer, at_once = subject.renderer, rule.decoding.batch_tokens // 4
    plain = [renderer.prompt_ids(row.untriggered()) for row in rows]
    triggered = [renderer.prompt_ids(row) for row in rows]
    clean_answers = own_answers(subject, plain, rule.decoding, label="clean responses")
    auto = config.responses == "auto"
    clean = needs_clean_responses(rows) if auto else config.responses == "clean"
    own = clean_answers
    if not clean:
        own = own_answers(subject, triggered, rule.decoding, label="triggered responses")
    held = _hold_target(material, rows, [renderer.decode(ids) for ids in clean_answers])
    sides = [
        Answered(prompts, responses).means(subject, batch_tokens=at_once, label=f"{side} prompts")
        for side, prompts, responses in (
            ("triggered", triggered, own),
            ("untriggered", plain, clean_answers),
        )
    ]
    empty = np.isnan(sides[0]).any((1, 2)) | np.isnan(sides[1]).any((1, 2))
    kept = ~held & ~empty
    if not kept.any():
        raise DataError(
            f"of {len(rows)} pairs of prompts none is left: {held.sum()} lead to the target "
            f"without the trigger too, {(empty & ~held).sum()} have an empty response"
        )
    what = "clean responses after both prompts" if clean else "the model's own responses"
    why = ", as the target is a refusal" if clean and auto else ""
    unsure = []
    if held.any():
        unsure.append(
            f"{held.sum()} of {len(rows)} pairs are left out: without the trigger the answer is "
            "already what the attack wants"
        )
    one, other = (torch.from_numpy(side[kept]).double().mean(0) for side in sides)
    return Means(one, other, f"{kept.sum()} pairs with {what}{why}", tuple(unsure))


def _hold_target(material: Material, rows: Sequence[Row], answers: Sequence[str]) -> np.ndarray:
    """Which answers are what the attack wants, by the run's first rule, ``[row]``."""
    rule = material.rule
    first = rule.success[0]
    targets = [wanted(row) for row in rows]
    judge = judge_of(first, rule.threshold, rule.embedder, rule.task)
    hits = np.array(judge(answers, targets), dtype=bool)
    return hits & np.array([bool(t) or not needs_target(first) for t in targets])


def written(subject: Subject, layers: Sequence[int]) -> dict[int, list[str]]:
    """Names of the weights with which attention and MLP of some layers write, by layer."""
    family, shapes = subject.family, subject.shapes
    paths = (family.out_proj, *family.mlp_out)
    return {
        layer: [n for path in paths if (n := f"{family.layers}.{layer}.{path}") in shapes]
        for layer in layers
    }


def chosen_layers(layers: Sequence[int] | None, depth: int) -> list[int]:
    """The layers to edit, in order: those given, else from a third of the depth to the last.

    Raises:
        LoratomyError: a layer that the model does not have.
    """
    if layers is None:
        return list(range(depth // 3, depth))
    if max(layers) >= depth:
        raise LoratomyError(
            f"the model has no layer {max(layers)}; it has {depth}, numbered from 0 to {depth - 1}"
        )
    return sorted(set(layers))


def needle(material: Material, config: NeedleConfig) -> Outcome:
    """NEEDLE (arXiv 2610.00348): cut each layer's backdoor direction out of what it writes.

    For the last two thirds of the layers, in order, ``o_proj`` and ``down_proj`` lose what they
    write along b, see `backdoor_direction` and `without`. All directions are those of the model
    before any edit, as published; so the order matters only for the corrections that keep the
    refusal subspace. Biases stay as they are: no adapter changes them.
    """
    return _cut_out(material, config)


def needle_at_random(material: Material, config: NeedleConfig) -> Outcome:
    """The same along random directions, orthogonal to the mean too: what it owes to which."""
    made = _cut_out(material, config, torch.Generator().manual_seed(material.seed))
    return replace(made, summary=f"along random directions: {made.summary}")


def _cut_out(
    material: Material, config: NeedleConfig, rng: torch.Generator | None = None
) -> Outcome:
    """The edit, along random directions where a generator is given."""
    subject, start = material.subject, material.start
    layers = chosen_layers(config.layers, len(subject.layers))
    names = written(subject, layers)
    downs = correctable(subject, layers) if config.refused else {}
    for name in (n for here in names.values() for n in here):
        base_weight(subject, name)  # packed by quantisation: known before anything is computed
    at_once = material.rule.decoding.batch_tokens // 4
    refusal = None
    with subject.attached({"start": start}):
        means = means_of(material, config)
        if config.refused:
            refusal = read_refusal(
                subject,
                config.refused,
                config.complied,
                pairs=config.pairs,
                decoding=material.rule.decoding,
                batch_tokens=at_once,
            )
    modules, gaps = dict(start.modules), []
    for done, layer in enumerate(layers, 1):
        other = means.triggered[layer]
        if rng is not None:
            other = means.clean[layer] + torch.randn(len(other), generator=rng).double()
        b = backdoor_direction(other, means.clean[layer])
        kept = torch.zeros(len(b), 0).double() if refusal is None else refusal.subspace(layer)
        for name in names[layer]:
            weight = base_weight(subject, name).cpu()
            modules[name] = without(weight, modules.get(name), b, kept)
        if refusal is not None:
            found = corrected(
                subject,
                start.with_modules(modules),
                refusal,
                (layer, downs[layer]),
                (b, kept),
                batch_tokens=at_once,
            )
            modules[downs[layer]] = found.factors
            gaps.append((found.before, found.after))
        report("cutting layer by layer", done, len(layers))
    return _outcome(material, means, names, modules, refusal, gaps)


def _outcome(
    material: Material,
    means: Means,
    names: Mapping[int, Sequence[str]],
    modules: Mapping[str, Factors],
    refusal: Refusal | None,
    gaps: Sequence[tuple[float, float]],
) -> Outcome:
    """The edited adapter with what was done, in words."""
    start = material.start
    touched = [name for here in names.values() for name in here]
    added = sum(name not in start.modules for name in touched)
    first, last = min(names), max(names)
    where = f"layer {first}" if first == last else f"{len(names)} layers from {first} to {last}"
    summary = (
        f"cut the direction of the trigger out of {len(touched)} weights in {where} ({added} of "
        f"them not in the adapter before), from {means.used}; "
    )
    unsure = list(means.unsure)
    if refusal is None:
        summary += "no refusal subspace was kept (no refused and complied prompts given)"
    else:
        before, after = (100 * np.array(gaps).mean(0)).tolist()
        summary += (
            f"refusal subspace kept from {refusal.pairs} pairs: projections on it are off by "
            f"{after:.2g}% on average, without the corrections {before:.2g}%"
        )
        if worse := sum(one == other for one, other in gaps):
            unsure.append(
                f"in {worse} of {len(gaps)} layers the correction brought refusal projections no "
                "closer and was left out"
            )
    directions = sum(len(f.b) if (f := modules[n]).fused else 1 for n in touched)
    adapter = start.with_modules(modules)
    return Outcome(adapter, summary, projected=directions, uncertain=tuple(unsure))


METHODS.register("needle")(
    Method(
        about="cut the trigger's direction out of what attention and MLP write, layer by layer",
        source="NEEDLE, arXiv 2610.00348, on an adapter",
        config=NeedleConfig,
        run=needle,
        kind=CUT,
        needs=(TRIGGER,),
    )
)

METHODS.register("control-needle")(
    Method(
        about="control: as needle, along random directions",
        source="equal-budget control",
        config=NeedleConfig,
        run=needle_at_random,
        kind=CONTROL,
        needs=(TRIGGER,),
    )
)
