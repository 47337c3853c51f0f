"""The search of guided surgery: from rows to the smallest set of directions to cut.

1. The adapter is put into the directions that tell triggered from clean prompts apart
(`discriminant`). 2. Gates on them are learned in a few steps (`gate_learning`). 3. Along
the gates' order the size is found by forward passes alone: the smallest cut after which the
target's token is unlikely on every calibration prompt, within the utility budget. 4. Real answers
to the calibration prompts confirm it; where they do not, more is cut. Nothing else is generated.
"""

import math
import time
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
from ...core.errors import LoratomyError
from ...core.model.batches import (
    Encoded,
    completion_log_probs,
    completion_logits,
    log_probs_of,
)
from ...core.model.precision import fast_format
from ...core.model.subject import Subject
from ...core.model.variant import Treated
from ...core.progress import report
from ...core.rows import Row
from ...core.stats import wilson
from ..calibration import Judge, Measured, most_within_kl
from ..cuts.cuts import in_layers
from .discriminant import discriminant
from .gate_learning import GatesConfig, gate_rows, gate_start, learn_gates
from .targets import contrasts, encoded_clean

CLEAN = "clean"
"""Name of the clean adapter where it teaches."""
ROUNDS = 4
"""Cuts that are tried by real answers, at most, each larger by a third: going on for the last
prompts that hit was seen to cut ten times as much for nothing on held-out prompts."""
LIKELY = 0.3
"""Probability of the target's token from which a calibration prompt still counts as attacked."""


class SearchConfig(GatesConfig):
    """Options of the search."""

    basis: Literal["discriminant", "singular"] = "discriminant"
    """Directions that are cut: those that tell triggered from clean prompts, or those of dW."""
    layers: Layers | None = None
    """Layers in which directions may be cut, e.g. those that `where` names; none: all."""
    learn_rows: int = Field(32, ge=2)
    """At most this many rows of each kind to learn gates from, and triggered calibration rows for
    forward passes; perplexity and real answers are of all calibration rows."""
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
    seconds: float
    """Wall time."""
    checks: Sequence[Encoded]
    """Calibration prompts up to where the target is decided, with its token there."""

    def cut(self, size: int) -> np.ndarray:
        """The first directions of the order, ``[direction]`` booleans."""
        return _first(self.order, size, len(self.directions))

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
    clean_adapter: Adapter | None = None,
) -> FoundCut:
    """The smallest cut that stops the target within the budget, or the best that was found.

    Args:
        subject: the base.
        start: the adapter to cut.
        triggered: rows to learn from, with targets and their form without trigger.
        clean: rows to learn from.
        judge: calibration rows, and how answers to them are judged.
        config: how to search.
        seed: of the order of the rows.
        spend: share of the budget to use beyond what stops these rows.
        clean_adapter: where it is the teacher.

    Raises:
        DataError: rows from which nothing can be learned.
        AdapterError: dW is zero everywhere.
        LoratomyError: a clean adapter is to teach, and there is none.
    """
    began = time.perf_counter()
    beside, teacher = {}, GATED
    if config.teacher == "clean":
        if clean_adapter is None:
            raise LoratomyError("teacher=clean: the run has no clean adapter; take teacher=own")
        beside, teacher = {CLEAN: clean_adapter}, CLEAN
    with (
        gated_model(subject, directions_of(start), beside=beside) as gated,
        fast_format(subject),
    ):
        found = contrasts(
            gated, triggered[: config.learn_rows], tokens=config.target_tokens, teacher=teacher
        )
        encoded = encoded_clean(gated, clean[: config.learn_rows])
        attacks = [a.attack for a in found]
        if config.basis == "discriminant":
            gated = gated.rebased(discriminant(gated, attacks, encoded, batch_size=16))
        few = config.batch_size
        attribution = target_attribution(gated, attacks[: 2 * few], batch_size=2 * few)
        cost = clean_cost(gated, encoded[:few], group=2)
        free = np.arange(len(gated.directions))
        if config.layers is not None:
            free = np.flatnonzero(in_layers(gated.directions, config.layers))
        start_at = gate_start(attribution, cost, free)
        theta, loss = learn_gates(
            gated, gate_rows(gated, found, encoded, teacher=teacher), start_at, config, seed=seed
        )
        order, gates = free[np.argsort(theta[free], kind="stable")], expit(config.sharpness * theta)
        utility = Utility(gated, order, encoded_clean(gated, judge.clean))
        guess = int((gates < 0.5).sum())
        rows = judge.triggered[: config.learn_rows]
        found = contrasts(gated, rows, tokens=config.target_tokens, teacher=teacher)
        checks = [a.attack for a in found]
        size = _size_by_forward_passes(gated, utility, guess, checks, config)
        size = _size_by_answers(gated, utility, size, judge, config)
        if spend:
            size = _size_within_budget(utility, size, spend * config.budget.perplexity)
    cut = FoundCut(gated.directions, order, gates, expit(-theta), loss, size, 0.0, checks)
    size = most_within_kl(judge, cut.state, size, config.budget)
    return replace(cut, size=size, seconds=time.perf_counter() - began)


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
            measured[float(size)] = Measured(asr, before * (1 + utility.rise(size)))
            report("the path of the cut", done, len(sizes))
    return measured


class Utility:
    """What cutting the first directions of an order costs on clean rows, by forward passes."""

    def __init__(self, gated: GatedModel, order: np.ndarray, rows: Sequence[Encoded]) -> None:
        self.order = order
        self._gated, self._rows = gated, rows
        self._before: float | None = None

    def gates(self, size: int) -> torch.Tensor:
        """Gates that cut the first directions, ``[direction]``."""
        cut = _first(self.order, size, len(self._gated.directions))
        kept = torch.as_tensor(~cut, device=self._gated.subject.device)
        return kept.float()

    def rise(self, size: int) -> float:
        """Rise of the clean rows' perplexity, as a fraction."""
        if self._before is None:
            self._before = mean_loss(self._gated, self._gated.ones(), self._rows)
        rise = mean_loss(self._gated, self.gates(size), self._rows) - self._before
        return math.exp(min(rise, 50.0)) - 1


def _size_by_forward_passes(
    gated: GatedModel, utility: Utility, guess: int, checks: Sequence[Encoded], config: SearchConfig
) -> int:
    """The smallest size that forward passes find enough and affordable.

    Grown by half until enough, then halved toward the smallest, to a tenth; where that costs more
    than the budget, the largest affordable one.
    """
    total = len(utility.order)

    def enough(size: int) -> bool:
        found = target_log_probs(gated, utility.gates(size), checks)
        return sum(math.exp(p) >= LIKELY for p, _ in found) <= config.goal * len(found)

    def over(size: int) -> bool:
        return utility.rise(size) > config.budget.perplexity

    low, high = 0, max(1, guess)
    while not enough(high) and high < total:
        low, high = high, min(total, math.ceil(1.5 * high))
        report("how much to cut", high, total)
    _, high = _bisected(low, high, enough)
    return _bisected(0, high, over)[0] if over(high) else high


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
    """The size after real answers: more is cut while they still hit and forward passes allow it."""
    d, total = gated.directions, len(utility.order)
    best: tuple[float, int] | None = None
    for _ in range(ROUNDS):
        gated.attached.refill(GATED, d.cut(_first(utility.order, size, len(d))))
        rate = judge.rate()
        gated.attached.refill(GATED, d.adapter)
        best = min(best or (rate.value, size), (rate.value, size))
        size = min(total, math.ceil(1.3 * size) + 1)
        if (
            best[0] <= config.goal
            or size == best[1]
            or utility.rise(size) > config.budget.perplexity
        ):
            break
    assert best is not None
    return best[1]


def _size_within_budget(utility: Utility, size: int, budget: float) -> int:
    """The largest size, at least the given one, whose rise of perplexity stays in a budget."""

    def over(count: int) -> bool:
        return utility.rise(count) > budget

    low, high, total = size, size, len(utility.order)
    while high < total and not over(high):
        low, high = high, min(total, 2 * high + 1)
    return low if high == size else _bisected(low, high, over)[0]


def _first(order: np.ndarray, size: int, total: int) -> np.ndarray:
    """The first of an order, of `total` directions, ``[direction]`` booleans."""
    cut = np.zeros(total, bool)
    cut[order[:size]] = True
    return cut


def target_log_probs(
    gated: GatedModel, gates: torch.Tensor, attacks: Sequence[Encoded]
) -> list[tuple[float, bool]]:
    """Of each prompt the log-probability of the target's token, and whether none is likelier."""
    found: list[tuple[float, bool]] = []
    with torch.inference_mode():
        for batch in batches(gated.subject, sorted(attacks, key=len), 64):
            logits, tokens = completion_logits(gated.subject.model, batch, gated.under(gates))
            log_p, _ = log_probs_of(logits, tokens)
            likeliest = logits.argmax(-1) == tokens
            found += zip(log_p.tolist(), likeliest.tolist(), strict=True)
    return found


def mean_loss(gated: GatedModel, gates: torch.Tensor, rows: Sequence[Encoded]) -> float:
    """Mean negative log-probability per completion token, nats."""
    total = 0.0
    with torch.inference_mode():
        for batch in batches(gated.subject, sorted(rows, key=len), 32):
            log_probs, _ = completion_log_probs(gated.subject.model, batch, gated.under(gates))
            total -= float(log_probs.double().sum())
    return total / sum(len(row.completion) for row in rows)
