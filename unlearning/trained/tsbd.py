"""TSBD: clean unlearning shows which neurons matter to the backdoor; zero them, then fine-tune.

Clean rows are all it sees. Published for convolutional networks; here for adapters.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...analysis.localisation.gates import directions_of
from ...analysis.material import Material
from ...analysis.neurons.ascent import Ascent, balanced, unlearn
from ...core.errors import LoratomyError
from ...core.model.batches import completion_log_probs, encode
from ...core.model.subject import Attached, Subject
from ...core.model.variant import Treated, replaced, treated
from ...core.progress import report
from ...core.records.neurons import Unlearning
from ...core.rows import Row
from ...evaluation.perplexity import perplexity
from ...training.objective import Batch, Objective, completion_tokens
from ..calibration import halves
from ..method import CLEAN_ROWS, CONTROL, GRADIENTS, METHODS, TRAINED, Method, Outcome
from .fit import FitConfig, trained
from .neuron_cut import Neurons, check_replaceable, direction_neurons, most_changed, row_neurons

Weights = Mapping[str, Tensor]
"""Weights by name."""


class TsbdConfig(FitConfig):
    """Options of `tsbd`."""

    over: Literal["directions", "neurons"] = "directions"
    """Neurons: singular directions of dW, or output rows of the merged weights (then base weights
    change too)."""
    clean_rows: int = Field(100, ge=1)
    """Clean rows to learn from, and as many held back to choose n; at most."""
    steps: int = Field(50, ge=1)
    """Most steps of the clean unlearning."""
    stride: float = Field(0.02, gt=0, le=1)
    """Length of such a step over the norm of all factors."""
    collapse: float = Field(0.2, gt=0, lt=1)
    """Stop when the share of right clean tokens falls to this fraction of its start."""
    n: float | None = Field(None, gt=0, le=1)
    """Share of neurons, the most changed; None: chosen on the clean rows held back."""
    shares: tuple[float, ...] = (
        0.002,
        0.005,
        0.01,
        0.02,
        0.05,
        0.1,
        0.15,
        0.2,
        0.3,
        0.4,
        0.5,
        0.7,
        0.9,
    )
    """Values of n to choose from, ascending."""
    tolerance: float = Field(1.3, gt=1)
    """The largest n is taken up to which the perplexity of the clean rows held back stays within
    this factor, before fine-tuning. The default was set once, on development subjects of the
    built-in model, looking at both perplexity and ASR of their calibration rows."""
    m: float = Field(0.7, gt=0, le=1)
    """Share of these neurons' sub-weights set to zero, the most changed."""
    r: float = Field(0.05, ge=0)
    """Length of the step along the gradient, over all factors, at which the second gradient is
    taken."""
    a: float = Field(0.7, ge=0, le=1)
    """Weight of the second gradient."""


def active(loss: Callable[[Weights], Tensor], theta: Weights, r: float, a: float) -> Tensor:
    """A number whose gradient is TSBD's (arXiv 2405.20291, section 4.3), a scalar.

    ``g = (1 - a) grad L(theta) + a grad L(theta + r grad L / |grad L|)``, which approximates the
    gradient of L plus a multiple of ``|grad L|``: neurons are kept from becoming active. The step
    is a constant; where the gradient is 0 there is none. As in the paper's formula the norm is that
    of all weights together; the published code takes it tensor by tensor.

    Args:
        loss: differentiable in the weights.
        theta: weights by name.
        r: length of the step.
        a: weight of the second gradient.

    Returns:
        ``(1 - a) L(theta) + a L(theta + step)``.
    """
    here = loss(theta)
    # Beside .grad, which may hold other micro-batches.
    found = torch.autograd.grad(here, list(theta.values()), retain_graph=True)
    size = torch.stack([g.norm() for g in found]).norm().clamp_min(1e-12)
    moved = {n: p + r * g / size for (n, p), g in zip(theta.items(), found, strict=True)}
    return (1 - a) * here + a * loss(moved)


def active_objective(*, r: float, a: float) -> Objective:
    """Activeness-aware fine-tuning of the trained factors on completions, see `active`.

    The step is that of each micro-batch's own gradient: accumulated batches, and processes, take
    one each.
    """

    def sums(attached: Attached, batch: Batch) -> Tensor:
        model = attached.subject.model

        def loss(weights: Weights) -> Tensor:
            def run(**inputs: Any) -> Any:
                return torch.func.functional_call(model, dict(weights), kwargs=inputs)

            return -completion_log_probs(model, batch, run)[0].sum()

        theta = {n: p for n, p in model.named_parameters() if p.requires_grad}
        return active(loss, theta, r, a)[None]

    return Objective(sums, lambda batch: completion_tokens(batch)[None], splits=False)


def unlearned(
    material: Material, rows: Sequence[Row], config: TsbdConfig
) -> tuple[Neurons, Unlearning]:
    """The neurons with their change under clean unlearning, and the record of the unlearning.

    Raises:
        LoratomyError: base weights that cannot be replaced; no clean token is right at the start.
    """
    subject = material.subject
    if config.over == "neurons":
        check_replaceable(subject, material.start.modules)
    directions = directions_of(balanced(material.start))
    after, record = unlearn(
        subject,
        directions.adapter,
        [encode(subject.renderer, row, limit=subject.limit) for row in rows],
        name="clean",
        about="clean prompts with their completions",
        ascent=Ascent(
            steps=config.steps,
            stride=config.stride,
            collapse=config.collapse,
            batch_size=config.batch_size,
        ),
    )
    if not record.steps:
        raise LoratomyError(
            f"none of the {record.n_tokens} tokens of {record.n_rows} clean completions is the "
            "model's first choice: there is nothing to unlearn; give rows that it answers right"
        )
    if config.over == "neurons":
        return row_neurons(subject, material.start, after), record
    return direction_neurons(directions, after), record


def choose(
    subject: Subject,
    neurons: Neurons,
    start: Treated,
    rows: Sequence[Row],
    config: TsbdConfig,
    *,
    batch_tokens: int,
) -> tuple[float, float, float]:
    """The share n of neurons, chosen on clean rows alone, and their perplexity before and at n.

    From the smallest share up, the last one before the perplexity of the held-back clean rows
    leaves ``tolerance`` times that of the start: the backdoor is unknown here, and what clean
    unlearning changed most goes first, so as much is zeroed as fine-tuning may be trusted to mend.
    A share of 0 means that not even the smallest fits.

    Args:
        subject: the base.
        neurons: see `unlearned`.
        start: what is measured first.
        rows: clean rows that nothing was learned from.
        config: shares, tolerance, m; with n given that one is taken and measured.
        batch_tokens: most positions at a time.
    """

    before = _perplexity(subject, start, rows, batch_tokens)
    chosen, at = 0.0, before
    shares = config.shares if config.n is None else (config.n,)
    for done, share in enumerate(sorted(shares), 1):
        state = neurons.zeroed(most_changed(neurons.nwc, share), config.m)
        value = _perplexity(subject, state, rows, batch_tokens)
        report("choosing n on clean rows", done, len(shares))
        if config.n is None and value > config.tolerance * before:
            report("choosing n on clean rows", len(shares), len(shares))
            break
        chosen, at = share, value
    return chosen, before, at


def _perplexity(subject: Subject, state: Treated, rows: Sequence[Row], batch_tokens: int) -> float:
    with treated(subject, state):
        return perplexity(subject, rows, batch_tokens=batch_tokens)[0]


def tsbd(material: Material, config: TsbdConfig) -> Outcome:
    """Clean unlearning, zero reinitialisation, activeness-aware fine-tuning."""
    return _zeroed_and_tuned(material, config)


def tsbd_at_random(material: Material, config: TsbdConfig) -> Outcome:
    """The same with as many neurons, but random ones: what TSBD owes to which it picks."""
    made = _zeroed_and_tuned(material, config, rng=np.random.default_rng(material.seed))
    return replace(made, summary=f"with random neurons: {made.summary}")


def _zeroed_and_tuned(
    material: Material, config: TsbdConfig, rng: np.random.Generator | None = None
) -> Outcome:
    """TSBD, its neurons shuffled where a generator is given."""
    learn, held = halves(material.clean_rows, config.clean_rows)
    neurons, record = unlearned(material, learn, config)
    start = Treated(material.start)
    at_once = material.rule.decoding.batch_tokens // 4
    n, before, after = choose(material.subject, neurons, start, held, config, batch_tokens=at_once)
    picked = most_changed(neurons.nwc, n) if n else None
    if picked is not None and rng is not None:
        picked = rng.permutation(picked)
    state = start if picked is None else neurons.zeroed(picked, config.m)
    if rng is not None:
        after = _perplexity(material.subject, state, held, at_once)
    with replaced(material.subject, state.weights):
        outcome = trained(
            material,
            learn,
            config,
            label="activeness-aware fine-tuning",
            objective=active_objective(r=config.r, a=config.a),
            start=state.adapter,
        )
    what = "singular directions" if config.over == "directions" else "output rows"
    count = 0 if picked is None else int(picked.sum())
    unsure = []
    if not record.reached:
        unsure.append(
            f"clean unlearning stopped after {record.steps} steps with {record.right[-1]:.0%} of "
            f"the clean tokens right ({record.right[0]:.0%} at the start): its ranking of neurons "
            "is early"
        )
    if picked is None:
        unsure.append(
            f"no n fits: zeroing {min(config.shares):.1%} of the neurons already takes the clean "
            f"perplexity beyond {config.tolerance:g} times what it was, so none was zeroed"
        )
    return replace(
        outcome,
        weights=state.weights,
        summary=(
            f"{record.steps} steps of clean unlearning (tokens right {record.right[0]:.0%} -> "
            f"{record.right[-1]:.0%}); zeroed m = {config.m:.0%} of the sub-weights of n = "
            f"{n:.1%} of the {what} ({count} of {len(neurons.nwc)}; perplexity of {len(held)} "
            f"clean rows held back {before:.3f} -> {after:.3f}); then activeness-aware "
            f"fine-tuning on {len(learn)} clean rows, {outcome.summary}"
        ),
        reached=picked is not None and record.reached,
        uncertain=tuple(unsure),
    )


METHODS.register("tsbd")(
    Method(
        about="clean unlearning, zeroing of the neurons it changed most, activeness-aware tuning",
        source="TSBD, Lin et al. 2024, arXiv 2405.20291 (for CNNs), carried over to adapters",
        config=TsbdConfig,
        run=tsbd,
        kind=TRAINED,
        needs=(CLEAN_ROWS, GRADIENTS),
    )
)


METHODS.register("control-neurons")(
    Method(
        about="control: as TSBD, with as many neurons at random",
        source="equal-budget control",
        config=TsbdConfig,
        run=tsbd_at_random,
        kind=CONTROL,
        needs=(CLEAN_ROWS, GRADIENTS),
    )
)
