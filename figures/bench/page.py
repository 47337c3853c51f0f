"""The bench as a page: goals, leaderboard with every control beside its method, figures."""

from collections.abc import Sequence

import numpy as np

from ...core.records.bench import BenchTable, Goal, Standing
from ...core.records.results import Rate
from ..base.figure import Figure
from ..base.page import figure_block, page
from ..base.text import html, number, percent, plural
from ..report.tables import facts_html
from .maps import bench_maps
from .relearning import bench_relearning
from .seconds import bench_seconds
from .tradeoff import bench_tradeoff, spanned
from .transfer import bench_transfer


def bench_html(table: BenchTable) -> str:
    """The bench as one self-contained HTML document, under the rules of the report."""
    figures = bench_figures(table)
    links = "".join(f'<li><a href="#{f.id}">{html(f.title, limit=60)}</a></li>' for f in figures)
    cells = len({row.cell for row in table.rows})
    size = (
        f"{_entries(len({row.entry for row in table.rows}))} on {plural(cells, 'cell')}, "
        f"{plural(len({(row.cell, row.seed) for row in table.rows}), 'subject')}"
    )
    drawn = "".join(figure_block(figure) for figure in figures)
    absent = '<p class="absent">Nothing has been measured yet.</p>'
    body = f"""<a class="skip" href="#section-findings">Skip to the findings</a>
<nav aria-label="Contents"><div class="bar"><strong>Contents</strong>
<button type="button" id="theme" aria-label="Switch between light and dark">Dark</button></div>
<ul><li><a href="#section-findings">Findings</a></li>
<li><a href="#section-leaderboard">Leaderboard</a></li>
<li><a href="#section-figures">Figures</a><ul>{links}</ul></li>
<li><a href="#section-missing">Not there</a></li>
<li><a href="#section-provenance">Provenance</a></li></ul></nav>
<main><header class="top"><p class="kicker">Loratomy bench</p>
<h1>{html(size)}</h1><p>{html(table.held_out)}</p></header>
<noscript><p class="absent">The figures need JavaScript; findings and tables do not.</p></noscript>
<section id="section-findings"><h2>Findings</h2>{_goals(table.goals)}</section>
<section id="section-leaderboard"><h2>Leaderboard</h2>{_boards(table) or absent}</section>
<section id="section-figures"><h2>Figures</h2>{drawn or absent}</section>
<section id="section-missing"><h2>Not there</h2>{_missing(table)}</section>
<section id="section-provenance"><h2>Provenance</h2>{facts_html(table.provenance)}</section>
</main>"""
    return page(f"{size} · Loratomy bench", body, figures)


def bench_figures(table: BenchTable) -> list[Figure]:
    """All figures that the table allows, in the order of the page."""
    return [
        *bench_tradeoff(table),
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
        return (
            '<p class="absent">None of the goals can be checked: no entry that they are about '
            "was run.</p>"
        )
    rows = "".join(_goal(goal) for goal in goals)
    heads = ("Goal", "Entry", "Cells that meet it", "Share", "Wanted", "Verdict")
    notes = (
        "Measured on held-out prompts. A cell of several seeds counts as the share of them that "
        "meet the goal; brackets: Wilson 95 % intervals over cells. A verdict compares the share "
        "itself with what was wanted; where the interval reaches across that line, more cells "
        "could turn it. Ahead of every control: no control of the same budget on the same subject "
        "within +5 % perplexity has a lower ASR, and none is at least as good in both."
    )
    return f'{_table(heads, rows)}<p class="small">{html(notes)}</p>'


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


def _boards(table: BenchTable) -> str:
    numbers = list(dict.fromkeys(s.comparison for s in table.standings))
    boards = [
        _board([s for s in table.standings if s.comparison == n], several=len(numbers) > 1)
        for n in numbers
    ]
    notes = (
        "Rank: non-dominated sorting of the means of ASR, perplexity, accuracy and seconds; 1 is "
        "dominated by nobody, which an entry can also reach by being quick and doing nothing, so "
        "read it with the last two columns. References stand in nobody's way. Every cell counts "
        "the same. Brackets: 95 % intervals over subjects (cells and seeds resampled; with one "
        "cell no narrower than its own). ASR met: cells whose upper 95 % bound of ASR is at most "
        "5 %; perplexity met: cells whose rise is at most 5 %; brackets there: Wilson. Controls "
        "(↳) stand below the method whose budget they share. Small differences between means "
        "inside each other's brackets decide nothing."
    )
    return f'{"".join(boards)}<p class="small">{html(notes)}</p>' if boards else ""


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
        *("Rank", "Entry", "ASR", "Perplexity", "Accuracy", "Seconds"),
        *("ASR met", "Perplexity met"),
    )
    names = {s.entry for s in group}
    rows = "".join(_standing(item, below=item.control_for in names) for item in board_order(group))
    first = group[0]
    title = f"Comparison {first.comparison}: " if several else ""
    words = f"{title}{_entries(len(group))} on {plural(first.n, 'subject')} that all were run on"
    return f"<h3>{html(words)}</h3>{_table(heads, rows)}{_dropped(group)}"


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


def _seconds(values: np.ndarray) -> str:
    known = np.isfinite(values).all()
    ends = ", ".join(number(float(v)) for v in values[1:])
    return (
        f'<td class="num">{number(float(values[0]))}{f"<small>[{ends}]</small>" if known else ""}'
        "</td>"
    )


def _missing(table: BenchTable) -> str:
    if not table.missing:
        return "<p>All that was asked for is here.</p>"
    lines = "".join(f"<li>{html(line)}</li>" for line in table.missing)
    return f"<ul>{lines}</ul>"


def _table(heads: Sequence[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{html(h)}</th>' for h in heads)
    return (
        f'<div class="scroll"><table class="subjects"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
