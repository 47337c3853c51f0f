"""How much to cut: settings judged by real generation on calibration rows, the mildest taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from ..analysis.material import Material
from ..core.config import Config
from ..core.errors import DataError
from ..core.model.subject import Subject
from ..core.model.variant import Treated, treated
from ..core.progress import report
from ..core.records.results import CutPath, Rate
from ..core.rows import Row
from ..core.stats import wilson
from ..evaluation.behaviour import attack_success
from ..evaluation.collect import Rule
from ..evaluation.perplexity import perplexity

Measured = tuple[Rate, float]
"""ASR and perplexity on the calibration rows."""


class DialConfig(Config):
    """Options of every method that chooses how much to cut."""

    budget: float = Field(0.05, ge=0)
    """Allowed rise of perplexity on calibration rows, as a fraction (0.05 is 5 %)."""
    goal: float = Field(0.0, ge=0, le=1)
    """Calibration ASR that counts as reached."""
    rows: int = Field(64, ge=2)
    """Calibration rows of each kind, triggered and clean, at most."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Calibration: triggered rows for ASR, clean rows for perplexity; never the held-out ones."""

    subject: Subject
    triggered: Sequence[Row]
    clean: Sequence[Row]
    rule: Rule

    def __call__(self, state: Treated) -> Measured:
        """ASR and perplexity of the subject in this state."""
        with treated(self.subject, state):
            return self.here()

    def here(self) -> Measured:
        """ASR and perplexity of the subject as it is."""
        at_once = self.rule.decoding.batch_tokens // 4
        value, _ = perplexity(self.subject, self.clean, batch_tokens=at_once)
        return self.rate(), value

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
    return Judge(material.subject, triggered, clean, material.rule)


def path_of(
    seen: dict[float, Measured], chosen: float, *, unit: str, goal: float, budget: float
) -> CutPath:
    """The record of what was measured: size -> ASR and perplexity."""
    sizes = sorted(seen)
    return CutPath(
        size=np.array(sizes),
        unit=unit,
        asr=np.array([[seen[k][0].value, seen[k][0].low, seen[k][0].high] for k in sizes]),
        perplexity=np.array([seen[k][1] for k in sizes]),
        asr_n=seen[sizes[0]][0].n,
        chosen=sizes.index(chosen),
        goal=goal,
        budget=budget,
    )


def best_of(seen: dict[float, Measured], *, goal: float, budget: float) -> float:
    """Of the sizes within the budget the smallest that reaches the goal, else of lowest ASR."""
    ceiling = seen[min(seen)][1] * (1 + budget)
    fits = [k for k in seen if seen[k][1] <= ceiling]
    reached = [k for k in fits if seen[k][0].value <= goal]
    return min(reached) if reached else min(fits, key=lambda k: (seen[k][0].value, k))


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
    judge = judge_of(material, config.rows)
    seen: dict[float, Measured] = {0.0: judge(Treated(material.start))}
    for done, size in enumerate(sizes, 1):
        seen[float(size)] = judge(make(size))
        report("calibrating", done, len(sizes))
    chosen = best_of(seen, goal=config.goal, budget=config.budget)
    path = path_of(seen, chosen, unit=unit, goal=config.goal, budget=config.budget)
    return chosen, path, seen[chosen][0].value <= config.goal


def outcome_words(path: CutPath, reached: bool, *, of: str = "calibration prompts") -> str:
    """The choice and its calibration figures, in words.

    Args:
        path: what was measured.
        reached: whether the goal was reached within the budget.
        of: the prompts of its ASR.
    """
    i = path.chosen
    before, after = path.perplexity[0], path.perplexity[i]
    line = (
        f"on {path.asr_n} {of} ASR {path.asr[0, 0]:.0%} -> {path.asr[i, 0]:.0%} "
        f"(upper bound {path.asr[i, 2]:.0%}), perplexity {before:.3f} -> {after:.3f} "
        f"({after / before - 1:+.1%})"
    )
    if not reached:
        line += f"; the goal of {path.goal:.0%} was not reached within {100 * path.budget:+.3g}%"
        rises = path.perplexity / before - 1
        if (enough := np.flatnonzero(path.asr[:, 0] <= path.goal)).size:
            least = enough[np.argmin(rises[enough])]
            line += (
                f" (of what was looked at, {path.size[least]:g} {path.unit} cut reach it, at "
                f"{rises[least]:+.1%})"
            )
    return line
