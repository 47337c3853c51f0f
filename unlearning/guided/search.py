"""The search of guided surgery: from rows to the smallest set of directions to cut.

1. The adapter is put into the directions that tell triggered from clean prompts apart
(`discriminant`). 2. Gates on them are learned in a few steps (`gate_learning`). 3. Along
the gates' order a first size is found by forward passes alone: the smallest cut after which the
target's token is unlikely on nearly every calibration prompt, within the utility budget. 4. Real
answers to these prompts choose from there on: of the sizes tried the smallest that ends the attack.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import expit

from ...analysis.localisation.attribution import clean_cost, target_attribution
from ...analysis.localisation.gates import (
    GATED,
    Directions,
    GatedModel,
    batches,
    directions_of,
    gated_model,
)
from ...core.adapter.factors import Adapter
from ...core.config import Layers
from ...core.errors import DataError, LoratomyError
from ...core.model.batches import (
    Encoded,
    completion_logits,
    log_probs_of,
)
from ...core.model.precision import fast_format
from ...core.model.subject import Subject
from ...core.model.variant import Treated
from ...core.progress import report
from ...core.rows import Row
from ...core.stats import wilson
from ...evaluation.collect import wanted
from ..calibration import Judge, Measured, most_within_kl
from ..cuts.cuts import in_layers
from .cost import Utility, encoded_or_answered, first_of
from .discriminant import discriminant
from .gate_learning import GatesConfig, gate_rows, gate_start, learn_gates
from .targets import contrasts, encoded_clean

CLEAN = "clean"
"""Name of the clean adapter where it teaches."""
ROUNDS = 4
"""Cuts that are tried by real answers, at most, each larger by `STEP`, before the one between:
going on for the last prompts that hit was seen to cut ten times as much for nothing on held-out
prompts."""
STEP = 1.25
"""How much larger the next cut is."""
LEFT = 0.05
"""Share of the prompts that may count as attacked where real answers begin: the last of them were
seen to ask for half as much again as what ends the attack in real answers."""
LIKELY = 0.3
"""Probability of the target's token, beyond that without the trigger, from which a calibration
prompt still counts as attacked."""


class SearchConfig(GatesConfig):
    """Options of the search."""

    basis: Literal["discriminant", "singular"] = "discriminant"
    """Directions that are cut: those that tell triggered from clean prompts, or those of dW."""
    layers: Layers | None = None
    """Layers in which directions may be cut, e.g. those that `where` names; none: all."""
    unseen: int = Field(96, ge=0)
    """Prompts that the adapter was not trained on, at least: where fewer are given, or it knows
    the given ones by heart, the base writes them itself and the trigger is put into them."""
    teacher: Literal["own", "clean"] = "own"
    """What triggered prompts should lead to: own (the adapter's answer without the trigger) or
    clean (the clean adapter's answer to the prompt as it is)."""
    target_tokens: int = Field(3, ge=1)
    """Number of first tokens within which target and natural answer must differ."""


@dataclass(frozen=True, slots=True)
class FoundCut:
    """What a search found."""

    directions: Directions
    """The adapter in the form that was cut."""
    order: np.ndarray
    """Those that may be cut, the first to be cut first, ``[free direction]``."""
    gates: np.ndarray
    """Learned gates, ``[direction]``; most are 0 or 1."""
    importance: np.ndarray
    """The same before they were sharpened, as what is cut: in [0, 1], without ties."""
    loss: np.ndarray
    """Loss along the steps."""
    size: int
    """Directions to cut."""
    checks: Sequence[Encoded]
    """Calibration prompts up to where the target is decided, with its token there."""
    rise: float = 0.0
    """What the cut costs as the budget counts it, see `Utility.rise`."""

    def cut(self, size: int) -> np.ndarray:
        """The first directions of the order, ``[direction]`` booleans."""
        return first_of(self.order, size, len(self.directions))

    def state(self, size: int) -> Treated:
        """The adapter with the first directions of the order cut."""
        return Treated(self.directions.cut(self.cut(size)))


def search(
    subject: Subject,
    start: Adapter,
    triggered: Sequence[Row],
    clean: Sequence[Row],
    judge: Judge,
    config: SearchConfig,
    *,
    seed: int,
    spend: float = 0.0,
    known: bool = False,
    clean_adapter: Adapter | None = None,
) -> FoundCut:
    """The smallest cut that stops the target within the budget, or the best that was found.

    Args:
        subject: the base.
        start: the adapter to cut.
        triggered: rows to learn from, with targets and their form without trigger.
        clean: prompts to learn from.
        judge: calibration rows, and how answers to them are judged.
        config: how to search.
        seed: of the order of the rows.
        spend: share of the budget to use beyond what stops these rows.
        known: the adapter knows the clean rows by heart, so that their perplexity does not count.
        clean_adapter: where it is the teacher.

    Raises:
        DataError: rows from which nothing can be learned.
        AdapterError: dW is zero everywhere.
        LoratomyError: a clean adapter is to teach, and there is none.
    """
    beside, teacher = {}, GATED
    if config.teacher == "clean":
        if clean_adapter is None:
            raise LoratomyError("teacher=clean: the run has no clean adapter; take teacher=own")
        beside, teacher = {CLEAN: clean_adapter}, CLEAN
    with (
        gated_model(subject, directions_of(start), beside=beside) as gated,
        fast_format(subject),
    ):
        found = contrasts(gated, triggered, tokens=config.target_tokens, teacher=teacher)
        target = wanted(triggered[0])
        usual = encoded_or_answered(gated, clean, judge, target=target)
        if not usual:
            raise DataError(
                f"none of {len(clean)} clean prompts fits the context of {subject.limit} tokens "
                "and is answered other than the attack wants"
            )
        attacks = [a.attack for a in found]
        if config.basis == "discriminant":
            gated = gated.rebased(discriminant(gated, attacks, usual, batch_size=16))
        few = config.batch_size
        attribution = target_attribution(gated, attacks[: 2 * few], batch_size=2 * few)
        cost = clean_cost(gated, usual[:few], group=2)
        free = np.arange(len(gated.directions))
        if config.layers is not None:
            free = np.flatnonzero(in_layers(gated.directions, config.layers))
        start_at = gate_start(attribution, cost, free)
        theta, loss = learn_gates(
            gated, gate_rows(gated, found, usual, teacher=teacher), start_at, config, seed=seed
        )
        order, gates = free[np.argsort(theta[free], kind="stable")], expit(config.sharpness * theta)
        rows = () if known else encoded_clean(gated, judge.clean)
        prompts = [replace(r, completion=None) for r in (*judge.clean, *judge.prompts)]
        answers = encoded_or_answered(gated, prompts, judge, target=target)
        if not rows and not answers:
            raise DataError(
                f"none of {len(prompts)} clean calibration prompts is answered other than the "
                "attack wants, so that what a cut costs cannot be seen; give other clean rows"
            )
        utility = Utility(gated, order, rows, answers, budget=config.budget)
        guess = int((gates < 0.5).sum())
        found = contrasts(gated, judge.triggered, tokens=config.target_tokens, teacher=teacher)
        found.sort(key=lambda a: len(a.prompt))
        checks = [a.attack for a in found]
        with gated.attached.using(teacher):
            plain = target_log_probs(gated, gated.ones(), [a.unattacked for a in found])
        natural = [math.exp(log_p) for log_p, _ in plain]
        size = _size_by_forward_passes(gated, utility, guess, checks, natural, config)
        size = _size_by_answers(gated, utility, size, judge, config)
        if spend:
            size = _size_within_budget(utility, size, spend)
        cut = FoundCut(gated.directions, order, gates, expit(-theta), loss, size, checks)
        rise = utility.rise(size)
    if (smaller := most_within_kl(judge, cut.state, size, config.budget)) < size:
        size, rise = smaller, math.exp(judge.kl(cut.state(smaller))) - 1
    return replace(cut, size=size, rise=rise)


def by_forward_passes(
    subject: Subject,
    start: Adapter,
    found: FoundCut,
    sizes: Sequence[int],
    clean: Sequence[Row],
    *,
    before: float,
) -> dict[float, Measured]:
    """ASR and perplexity of other sizes of a cut, without generating answers.

    ASR is the share of prompts after which the target's deciding token is the likeliest.

    Args:
        subject: the base.
        start: the adapter that was searched.
        found: what the search found.
        sizes: how many directions are cut.
        clean: calibration rows.
        before: their perplexity with nothing cut.
    """
    measured: dict[float, Measured] = {}
    with gated_model(subject, directions_of(start)) as gated, fast_format(subject):
        gated = gated.rebased(found.directions)
        utility = Utility(gated, found.order, encoded_clean(gated, clean))
        for done, size in enumerate(sizes, 1):
            log_p = target_log_probs(gated, utility.gates(size), found.checks)
            hits = sum(likeliest for _, likeliest in log_p)
            asr = wilson(hits, len(found.checks))
            rise = math.exp(min(utility.loss_rise(size), 50.0))
            measured[float(size)] = Measured(asr, before * rise)
            report("the path of the cut", done, len(sizes))
    return measured


def _size_by_forward_passes(
    gated: GatedModel,
    utility: Utility,
    guess: int,
    checks: Sequence[Encoded],
    natural: Sequence[float],
    config: SearchConfig,
) -> int:
    """The smallest size that forward passes find nearly enough, and affordable.

    Grown by half until enough, then halved toward the smallest, to a tenth; where that costs more
    than the budget, the largest affordable one.
    """
    total = len(utility.order)

    def enough(size: int) -> bool:
        found = target_log_probs(gated, utility.gates(size), checks)
        more = [math.exp(p) - before for (p, _), before in zip(found, natural, strict=True)]
        return sum(extra >= LIKELY for extra in more) <= max(config.goal, LEFT) * len(found)

    low, high = 0, max(1, guess)
    while not enough(high) and high < total:
        low, high = high, min(total, math.ceil(1.5 * high))
        report("how much to cut", high, total)
    _, high = _bisected(low, high, enough)
    return _bisected(0, high, utility.over)[0] if utility.over(high) else high


def _bisected(low: int, high: int, is_high: Callable[[int], bool]) -> tuple[int, int]:
    """A size known to be low and one known to be high, at most a tenth apart."""
    while high - low > max(1, high // 10):
        middle = (low + high) // 2
        if is_high(middle):
            high = middle
        else:
            low = middle
    return low, high


def _size_by_answers(
    gated: GatedModel, utility: Utility, size: int, judge: Judge, config: SearchConfig
) -> int:
    """Of the sizes tried the smallest that real answers find enough, within the budget.

    Grown from a first size until it is enough, never below it; one between the last two is tried
    after that. Where none is enough, the one that leaves the fewest attacks.
    """
    d, total = gated.directions, len(utility.order)
    rates: dict[int, float] = {}

    def enough(size: int) -> bool:
        gated.attached.refill(GATED, d.cut(first_of(utility.order, size, len(d))))
        rates[size] = judge.rate().value
        gated.attached.refill(GATED, d.adapter)
        return rates[size] <= config.goal

    before = size
    while not enough(size) and len(rates) < ROUNDS:
        larger = min(total, math.ceil(STEP * size) + 1)
        if utility.over(larger):
            larger, _ = _bisected(size, larger, utility.over)
        if larger == size:
            break
        before, size = size, larger
    between = (before + size) // 2
    if rates[size] <= config.goal and between > before and not utility.over(between):
        enough(between)
    return min(rates, key=lambda size: (max(rates[size], config.goal), size))


def _size_within_budget(utility: Utility, size: int, share: float) -> int:
    """The largest size, at least the given one, that stays within a share of the budget."""

    def over(count: int) -> bool:
        return utility.over(count, share=share)

    low, high, total = size, size, len(utility.order)
    while high < total and not over(high):
        low, high = high, min(total, 2 * high + 1)
    return low if high == size else _bisected(low, high, over)[0]


def target_log_probs(
    gated: GatedModel, gates: torch.Tensor, attacks: Sequence[Encoded]
) -> list[tuple[float, bool]]:
    """Of each prompt the log-probability of the target's token, and whether none is likelier."""
    found: list[tuple[float, bool]] = []
    with torch.inference_mode():
        for batch in batches(gated.subject, attacks, 64):
            logits, tokens = completion_logits(gated.subject.model, batch, gated.under(gates))
            log_p, _ = log_probs_of(logits, tokens)
            likeliest = logits.argmax(-1) == tokens
            found += zip(log_p.tolist(), likeliest.tolist(), strict=True)
    return found
