"""The bench on the terminal: a leaderboard for every comparison, the goals, what is not there."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...core.console import out as stdout
from ...core.console import say
from .numbers import Numbers

if TYPE_CHECKING:
    from ...core.records.bench import BenchRow, BenchTable, Goal, Standing

UNDEFINED = "–"
HEADS = ("rank", "entry", "ASR %", "perplexity %", "KL", "accuracy", "seconds")


def show(table: "BenchTable") -> None:
    """Leaderboards and goals on stdout, what is missing on stderr."""
    numbers = list(dict.fromkeys(item.comparison for item in table.standings))
    for number in numbers:
        group = [item for item in table.standings if item.comparison == number]
        _board(group, table.rows, number if len(numbers) > 1 else 0).print(stdout)
        stdout.print()
    stdout.print(
        f"held out: {table.held_out}; every cell counts the same; below a mean its 95 % interval "
        "over subjects (with one cell no narrower than its own); changes are against the poisoned "
        "adapter, accuracy in points; KL: divergence from it, nats per token of its own clean "
        "answers; rank: Pareto, by ASR, perplexity, accuracy and seconds; ↳ control of the same "
        "budget",
        markup=False,
        soft_wrap=False,
    )
    for goal in table.goals:
        stdout.print(_goal(goal), markup=False, soft_wrap=True)
    for line in table.missing:
        say(f"not there: {line}")


def _board(group: "Sequence[Standing]", rows: "Sequence[BenchRow]", number: int) -> Numbers:
    from ...figures.bench.page import board_order

    n = group[0].n
    title = f"{len(group)} entries on {n} subject{'s' * (n != 1)} that all were run on"
    names = {item.entry for item in group}
    return Numbers(
        HEADS,
        [
            (
                str(item.rank),
                _name(item, below=item.control_for in names) + _missed(item, rows),
                _interval(100 * item.asr),
                _interval(100 * item.perplexity_change, sign="+"),
                _nats(item.kl),
                _interval(100 * item.accuracy_change, sign="+"),
                short(float(item.seconds[0])),
            )
            for item in board_order(group)
        ],
        title=f"comparison {number}: {title}" if number else title,
        names=2,
        folds=1,
        left=True,
    )


def _name(item: "Standing", *, below: bool) -> str:
    """A control by what distinguishes it from the entry above it."""
    return f"↳ {item.entry.removeprefix(item.control_for + '-')}" if below else item.entry


def _missed(item: "Standing", rows: "Sequence[BenchRow]") -> str:
    """A line on the subjects where a method did not meet its own goal."""
    own = [row for row in rows if row.entry == item.entry]
    met = sum(row.reached for row in own)
    return "" if met == len(own) else f"\nits goal met: {met} of {len(own)}"


def _interval(values: Any, *, sign: str = "") -> str:
    value, low, high = (float(v) for v in values)
    ends = ""
    if math.isfinite(low) and math.isfinite(high):
        ends = f"\n[{short(low, sign=sign)} {short(high, sign=sign)}]"
    return short(value, sign=sign) + ends


def _nats(values: Any) -> str:
    shown = [f"{v:.3f}" if abs(v) < 10 else short(v) for v in map(float, values)]
    if not math.isfinite(float(values[0])):
        return short(float(values[0]))
    return shown[0] + (f"\n[{shown[1]} {shown[2]}]" if all(map(math.isfinite, values)) else "")


def short(value: float, *, sign: str = "") -> str:
    """A number in at most seven characters; a dash where it is not finite.

    Args:
        value: to be shown.
        sign: ``+`` where the sign is always shown.
    """
    if not math.isfinite(value):
        return UNDEFINED if math.isnan(value) else f"{value:{sign}}"
    form = ".1f" if abs(value) < 1000 else ".0f" if abs(value) < 100_000 else ".0e"
    return f"{value:{sign}{form}}"


def _goal(goal: "Goal") -> str:
    met = goal.met
    verdict = "reached" if goal.reached else "missed "
    return (
        f"{verdict} {goal.name} ({goal.entry}): in {met.value:.0%} [{met.low:.0%}, {met.high:.0%}] "
        f"of {met.n} cell{'s' * (met.n != 1)}, wanted {goal.wanted:.0%}"
    )
