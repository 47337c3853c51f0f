"""The bench as a page: goals, leaderboard with every control beside its method, figures."""

from collections.abc import Sequence

import numpy as np

from ...core.records.bench import BenchTable, Goal, Standing
from ...core.records.goals import Goals
from ...core.records.results import Rate
from ..base.document import Section, absent, document, small, table
from ..base.figure import Figure
from ..base.text import html, number, percent, plural
from ..report.tables import facts_html
from .maps import bench_maps
from .relearning import bench_relearning
from .seconds import bench_seconds
from .tradeoff import bench_tradeoff, spanned, spanned_kl
from .transfer import bench_transfer


def bench_html(bench: BenchTable, goals: Goals) -> str:
    """The bench as one self-contained HTML document, under the rules of the report.

    Args:
        bench: what was measured.
        goals: which the leaderboard counts cells by, drawn beside means.
    """
    cells = len({row.cell for row in bench.rows})
    size = (
        f"{_entries(len({row.entry for row in bench.rows}))} on {plural(cells, 'cell')}, "
        f"{plural(len({(row.cell, row.seed) for row in bench.rows}), 'subject')}"
    )
    nothing, figures = absent("Nothing has been measured yet."), tuple(bench_figures(bench, goals))
    header = f"""<p class="kicker">Loratomy bench</p>
<h1>{html(size)}</h1><p>{html(bench.held_out)}</p>"""
    sections = [
        Section("findings", "Findings", _goals(bench.goals)),
        Section("leaderboard", "Leaderboard", _boards(bench, goals) or nothing),
        Section("figures", "Figures", "" if figures else nothing, figures),
        Section("missing", "Missing", _missing(bench)),
        Section("provenance", "Provenance", facts_html(bench.provenance)),
    ]
    return document(f"{size} · Loratomy bench", header, sections)


def bench_figures(table: BenchTable, goals: Goals) -> list[Figure]:
    """All figures that the table allows, in the order of the page."""
    return [
        *bench_tradeoff(table, goals),
        *bench_maps(table),
        *bench_seconds(table),
        *bench_relearning(table),
        *bench_transfer(table),
    ]


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _counted(value: Rate) -> str:
    """Cells that meet something out of all; with seeds the number may be a fraction."""
    return f"{number(round(value.value * value.n, 2))} of {value.n}"


def _bounds(value: Rate) -> str:
    low, high = (percent(v).removesuffix(" %") for v in (value.low, value.high))
    return f"{percent(value.value)}<small>[{low}, {high}]</small>"


# --- findings ----------------------------------------------------------------------------------


def _goals(goals: Sequence[Goal]) -> str:
    if not goals:
        return absent("None of the goals can be checked: no entry that they are about was run.")
    rows = "".join(_goal(goal) for goal in goals)
    heads = ("Goal", "Entry", "Cells that meet it", "Share", "Wanted", "Verdict")
    notes = (
        "Measured on held-out prompts. A cell of several seeds counts as the share of them that "
        "meet the goal; brackets: Wilson 95 % intervals over cells. A verdict compares the share "
        "itself with what was wanted; where the interval reaches across that line, more cells "
        "could turn it. Ahead of every control: no control of the same budget on the same subject "
        "within +5 % perplexity has a lower ASR, and none is at least as good in both."
    )
    return table(heads, rows, kind="subjects") + small(notes)


def _goal(goal: Goal) -> str:
    verdict, sign = ("pass", "✓ pass") if goal.reached else ("fail", "✗ fail")
    return (
        f"<tr{' class=small' if ', of which ' in goal.name else ''}>"
        f'<th scope="row" style="white-space:normal">{html(goal.name)}</th>'
        f"<td><bdi>{html(goal.entry, limit=80)}</bdi></td>"
        f'<td class="num">{_counted(goal.met)}</td><td class="num">{_bounds(goal.met)}</td>'
        f'<td class="num">≥&nbsp;{100 * goal.wanted:.0f}&nbsp;%</td>'
        f'<td class="{verdict}">{sign}</td></tr>'
    )


# --- leaderboard -------------------------------------------------------------------------------


def _boards(bench: BenchTable, goals: Goals) -> str:
    numbers = list(dict.fromkeys(s.comparison for s in bench.standings))
    boards = [
        _board([s for s in bench.standings if s.comparison == n], several=len(numbers) > 1)
        for n in numbers
    ]
    notes = (
        "Rank: non-dominated sorting of the means of ASR, perplexity, accuracy and seconds; 1 is "
        "dominated by nobody, which an entry can also reach by being quick and doing nothing, so "
        "read it with the last two columns. References dominate nobody. KL: divergence from the "
        "poisoned adapter, nats per token of its own clean answers; no part of the rank. Every "
        "cell counts "
        "the same. Brackets: 95 % intervals over subjects (cells and seeds resampled; with one "
        f"cell no narrower than its own). {_met_words(goals)}Controls (↳) are below the method "
        "whose budget they share. Small differences between means inside each other's brackets "
        "decide nothing."
    )
    return "".join(boards) + small(notes) if boards else ""


def _met_words(goals: Goals) -> str:
    if goals.asr is None or goals.perplexity is None:
        return ""
    return (
        f"ASR met: cells whose upper 95 % bound of ASR is at most {100 * goals.asr:.3g} %; "
        f"perplexity met: cells whose rise is at most {100 * goals.perplexity:.3g} %; brackets "
        "there: Wilson. "
    )


def board_order(group: Sequence[Standing]) -> list[Standing]:
    """Methods by rank, each followed by its controls; references last."""
    names = {s.entry for s in group}
    references = [s for s in group if s.kind == "reference"]
    controls = [s for s in group if s.control_for in names and s not in references]
    out: list[Standing] = []
    for item in group:
        if item not in references and item not in controls:
            out += [item, *(s for s in controls if s.control_for == item.entry)]
    return [*out, *(s for s in controls if s not in out), *references]


def _board(group: list[Standing], *, several: bool) -> str:
    heads = (
        *("Rank", "Entry", "ASR", "Perplexity", "KL", "Accuracy", "Seconds"),
        *("ASR met", "Perplexity met"),
    )
    names = {s.entry for s in group}
    rows = "".join(_standing(item, below=item.control_for in names) for item in board_order(group))
    first = group[0]
    title = f"Comparison {first.comparison}: " if several else ""
    words = f"{title}{_entries(len(group))} on {plural(first.n, 'subject')} that all were run on"
    return f"<h3>{html(words)}</h3>{table(heads, rows, kind='subjects')}{_dropped(group)}"


def _dropped(group: list[Standing]) -> str:
    """Which methods are no better than no adapter at all, in ASR, perplexity and accuracy."""
    base = next((s for s in group if s.entry == "base"), None)
    methods = [s for s in group if s.kind != "reference" and not s.control_for]
    if base is None or not methods:
        return ""
    worse = [s.entry for s in methods if (_costs(base) <= _costs(s)).all()]
    words = (
        f"Dropping the adapter altogether (base) is at least as good in the means of ASR, "
        f"perplexity and accuracy as {', '.join(worse)}."
        if worse
        else "Every method is better than no adapter at all (base) in ASR, perplexity or accuracy."
    )
    return f"<p>{html(words)}</p>"


def _costs(item: Standing) -> np.ndarray:
    costs = np.array([item.asr[0], item.perplexity_change[0], -item.accuracy_change[0]])
    return np.where(np.isnan(costs), np.inf, costs)


def _standing(item: Standing, *, below: bool) -> str:
    name = f"<bdi>{html(item.entry, limit=80)}</bdi>"
    kind = f"control for {item.control_for}" if item.control_for else item.kind
    return (
        f"<tr{' class=small' if item.control_for else ''}>"
        f'<td class="num">{item.rank}</td>'
        f'<th scope="row">{"↳ " * below}{name}<br><small class="small">'
        f"<bdi>{html(kind, limit=80)}</bdi></small></th>"
        f"{_mean(item.asr)}{_mean(item.perplexity_change, signed=True)}"
        f"{_kl(item.kl)}"
        f"{_mean(item.accuracy_change, signed=True, points=True)}{_seconds(item.seconds)}"
        f'<td class="num">{_counted(item.asr_met)}<small>{_ends(item.asr_met)}</small></td>'
        f'<td class="num">{_counted(item.perplexity_met)}'
        f"<small>{_ends(item.perplexity_met)}</small></td></tr>"
    )


def _ends(value: Rate) -> str:
    return f"[{percent(value.low).removesuffix(' %')}, {percent(value.high)}]"


def _mean(values: np.ndarray, *, signed: bool = False, points: bool = False) -> str:
    value, _, ends = spanned(values, signed=signed, points=points).partition(" [")
    return f'<td class="num">{value}{f"<small>[{ends}</small>" if ends else ""}</td>'


def _kl(values: np.ndarray) -> str:
    value, _, ends = spanned_kl(values).partition(" [")
    return f'<td class="num">{value}{f"<small>[{ends}</small>" if ends else ""}</td>'


def _seconds(values: np.ndarray) -> str:
    known = np.isfinite(values).all()
    ends = ", ".join(number(float(v)) for v in values[1:])
    return (
        f'<td class="num">{number(float(values[0]))}{f"<small>[{ends}]</small>" if known else ""}'
        "</td>"
    )


def _missing(bench: BenchTable) -> str:
    if not bench.missing:
        return "<p>Everything requested is here.</p>"
    lines = "".join(f"<li>{html(line)}</li>" for line in bench.missing)
    return f"<ul>{lines}</ul>"
