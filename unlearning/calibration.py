"""How much to cut: settings judged by real generation on calibration rows, the mildest taken."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from pydantic import Field

from ..analysis.material import Material
from ..core.adapter.factors import Adapter
from ..core.config import Config
from ..core.errors import DataError
from ..core.model.batches import Encoded
from ..core.model.precision import fast_format
from ..core.model.subject import Subject
from ..core.model.variant import Treated, treated
from ..core.progress import report
from ..core.records.results import CutPath, Rate
from ..core.rows import Row
from ..core.stats import wilson
from ..evaluation.behaviour import attack_success
from ..evaluation.collect import Rule
from ..evaluation.divergence import divergences, greedy_answers
from ..evaluation.perplexity import perplexity
from .budget import Budget


class Measured(NamedTuple):
    """A setting on the calibration rows."""

    asr: Rate
    """On the triggered ones."""
    perplexity: float
    """On the clean ones."""
    kl: float = math.nan
    """KL divergence from the reference, nats per token; NaN where it was not measured."""


class DialConfig(Config):
    """Options of every method that chooses how much to cut."""

    budget: Budget = Budget()  # pyright: ignore[reportCallIssue]
    """What the cut may cost on clean calibration rows."""
    goal: float = Field(0.0, ge=0, le=1)
    """Calibration ASR that counts as reached."""
    rows: int = Field(64, ge=2)
    """Calibration rows of each kind, triggered and clean, at most."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Calibration: triggered rows for ASR, clean rows for what a cut costs; never held-out ones."""

    subject: Subject
    triggered: Sequence[Row]
    clean: Sequence[Row]
    rule: Rule
    reference: Adapter | None = None
    """From which KL divergence is measured, on its own answers: the poisoned adapter."""
    prompts: Sequence[Row] = ()
    """Clean prompts without completions, for KL divergence beside the clean rows."""
    _answers: list[Encoded] = field(default_factory=list, compare=False, repr=False)

    def __call__(self, state: Treated, *, kl: bool = False) -> Measured:
        """ASR and perplexity of the subject in this state; with `kl` the KL divergence, too."""
        with treated(self.subject, state), fast_format(self.subject):
            found = self.here()
        return found._replace(kl=self.kl(state)) if kl else found

    def kl(self, state: Treated) -> float:
        """KL divergence of this state from the reference on its own answers, nats per token.

        Raises:
            ValueError: there is no reference.
        """
        if self.reference is None:
            raise ValueError("KL divergence needs a reference adapter")
        if not self._answers:
            label, decoding = "the adapter's own answers", self.rule.decoding
            with treated(self.subject, Treated(self.reference)):
                rows = [*self.clean, *self.prompts]
                own = greedy_answers(self.subject, rows, decoding, label=label)
            self._answers.extend(own)
        sums, counts = divergences(
            self.subject,
            self.reference,
            state,
            self._answers,
            batch_tokens=self.rule.decoding.batch_tokens // 4,
        )
        return float(sums.sum() / counts.sum())

    def here(self) -> Measured:
        """ASR and perplexity of the subject as it is."""
        at_once = self.rule.decoding.batch_tokens // 4
        value, _ = perplexity(self.subject, self.clean, batch_tokens=at_once)
        return Measured(self.rate(), value)

    def rate(self) -> Rate:
        """ASR alone."""
        hits = [a.hit for a in attack_success(self.subject, self.triggered, self.rule)]
        return wilson(sum(hits), len(hits))


def halves(rows: Sequence[Row], most: int) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and rows to calibrate on, at most `most` of each.

    Raises:
        DataError: fewer than two rows.
    """
    if len(rows) < 2:
        raise DataError(f"{len(rows)} rows cannot be split for calibration; give at least two")
    size = min(most, len(rows) // 2)
    return list(rows[:size]), list(rows[size : 2 * size])


def judge_of(material: Material, most: int) -> Judge:
    """The judge on the calibration rows: those that no method learns from."""
    _, triggered = halves(material.triggered, most)
    _, clean = halves(material.clean_rows, most)
    return Judge(material.subject, triggered, clean, material.rule, material.poisoned)


def path_of(
    seen: Mapping[float, Measured],
    chosen: float,
    *,
    unit: str,
    goal: float,
    budget: Budget,
    passes: Mapping[float, Measured] | None = None,
) -> CutPath:
    """The record of what was measured: size -> ASR, perplexity and KL divergence.

    Args:
        seen: sizes at which answers were generated.
        chosen: the size that was taken, one of these.
        unit: what the sizes count, in the plural.
        goal: ASR that counts as reached.
        budget: what a cut may cost.
        passes: further sizes, by forward passes alone.
    """
    seen = {**(passes or {}), **seen}
    sizes = sorted(seen)
    answered = np.array([size not in passes for size in sizes]) if passes else None
    return CutPath(
        size=np.array(sizes),
        unit=unit,
        asr=np.array([[seen[k].asr.value, seen[k].asr.low, seen[k].asr.high] for k in sizes]),
        perplexity=np.array([seen[k].perplexity for k in sizes]),
        asr_n=seen[sizes[0]].asr.n,
        chosen=sizes.index(chosen),
        goal=goal,
        budget=budget.perplexity,
        kl=None if budget.kl is None else np.array([seen[k].kl for k in sizes]),
        kl_budget=budget.kl,
        answered=answered,
    )


def within(found: Measured, before: Measured, budget: Budget) -> bool:
    """Whether a setting keeps to the budget.

    Args:
        found: the setting.
        before: with nothing cut.
        budget: the limits.
    """
    kept = budget.kl is None or found.kl <= budget.kl
    return kept and found.perplexity <= before.perplexity * (1 + budget.perplexity)


def best_of(seen: Mapping[float, Measured], *, goal: float, budget: Budget) -> float:
    """Of the sizes within the budget the smallest that reaches the goal, else of lowest ASR.

    Where even nothing cut exceeds it (the KL of what an earlier operation left), nothing is cut.
    """
    none = min(seen)
    fits = [k for k in seen if within(seen[k], seen[none], budget)] or [none]
    reached = [k for k in fits if seen[k].asr.value <= goal]
    return min(reached) if reached else min(fits, key=lambda k: (seen[k].asr.value, k))


def most_within_kl(judge: Judge, state: Callable[[int], Treated], size: int, budget: Budget) -> int:
    """The largest size, up to a given one, that bisection finds within the KL limit.

    Args:
        judge: calibration rows.
        state: the subject with a cut of a size.
        size: the given one.
        budget: of which the KL limit counts; without one all of the size is.
    """
    if budget.kl is None or size == 0 or judge.kl(state(size)) <= budget.kl:
        return size
    low, high = 0, size
    while high - low > 1:
        middle = (low + high) // 2
        if judge.kl(state(middle)) <= budget.kl:
            low = middle
        else:
            high = middle
    return low


def dial(
    material: Material,
    sizes: Sequence[float],
    make: Callable[[float], Treated],
    config: DialConfig,
    *,
    unit: str,
) -> tuple[float, CutPath, bool]:
    """The mildest of some settings that reaches the goal within the budget, and its path.

    Args:
        material: what the method may look at.
        sizes: how much each setting cuts, more than 0; nothing cut is measured beside them.
        make: the subject's state at one of these.
        config: goal, budget and calibration rows.
        unit: what the sizes count, in the plural.

    Returns:
        The size taken (0: nothing), the path, and whether the goal was reached.
    """
    judge, kl = judge_of(material, config.rows), config.budget.kl is not None
    seen: dict[float, Measured] = {0.0: judge(Treated(material.start), kl=kl)}
    for done, size in enumerate(sizes, 1):
        seen[float(size)] = judge(make(size), kl=kl)
        report("calibrating", done, len(sizes))
    chosen = best_of(seen, goal=config.goal, budget=config.budget)
    path = path_of(seen, chosen, unit=unit, goal=config.goal, budget=config.budget)
    kept = within(seen[chosen], seen[0.0], config.budget)
    return chosen, path, kept and seen[chosen].asr.value <= config.goal


def outcome_words(
    path: CutPath, reached: bool, *, of: str = "calibration prompts", own: float | None = None
) -> str:
    """The choice and its calibration figures, in words.

    Args:
        path: what was measured.
        reached: whether the goal was reached within the budget.
        of: the prompts of its ASR.
        own: rise of perplexity on the adapter's own text, where it knows the clean rows by heart.
    """
    i = path.chosen
    before, after = path.perplexity[0], path.perplexity[i]
    line = (
        f"on {path.asr_n} {of} ASR {path.asr[0, 0]:.0%} -> {path.asr[i, 0]:.0%} "
        f"(upper bound {path.asr[i, 2]:.0%}), perplexity {before:.3f} -> {after:.3f} "
        f"({after / before - 1:+.1%})"
    )
    if own is not None:
        line += f" on rows known by heart and {own:+.1%} on the adapter's own text, which counts"
    line += "" if path.kl is None else f", KL {path.kl[i]:.3g} nats per token"
    if not reached:
        line += f"; the goal of {path.goal:.0%} was not reached within {100 * path.budget:+.3g}%"
        line += "" if path.kl_budget is None else f" and a KL of {path.kl_budget:g}"
        rises = path.perplexity / before - 1
        enough = np.flatnonzero(path.asr[:, 0] <= path.goal)
        if enough.size and own is None:
            least = enough[np.argmin(rises[enough])]
            line += (
                f" (of what was looked at, {path.size[least]:g} {path.unit} cut reach it, at "
                f"{rises[least]:+.1%}"
                + ("" if path.kl is None else f" and a KL of {path.kl[least]:.3g}")
                + ")"
            )
    return line
