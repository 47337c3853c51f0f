"""Maps of the bench: ASR, cost in perplexity and KL of every entry on every subject."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ...core.records.bench import BenchRow, BenchTable
from ..base.figure import Figure
from ..base.text import change, number, percent, plural, rate, spread_kl
from ..base.theme import diverging, largest, magnitude, named, panels, single, text
from .entries import bar, case_names, cases, downward, entries, labels

SCALE_END = 0.5
"""Changes of perplexity beyond this share the last colour."""
WRITTEN = 12
"""Up to this many columns the numbers are written in the cells."""


def bench_maps(table: BenchTable) -> list[Figure]:
    """Held-out ASR, change of perplexity and KL divergence, entry by subject; none without rows."""
    if not table.rows:
        return []
    measured = any(row.kl_n for row in table.rows)
    return [_asr(table.rows), _perplexity(table.rows), *([_kl(table.rows)] if measured else [])]


def _grid(rows: Sequence[BenchRow]) -> list[list[BenchRow | None]]:
    """Rows of the table by entry and subject."""
    at = {(row.entry, (row.cell, row.seed)): row for row in rows}
    return [[at.get((entry, case)) for case in cases(rows)] for entry in entries(rows)]


def _values(grid: list[list[BenchRow | None]], field: str) -> np.ndarray:
    """``asr`` or another number of each row, ``[entry, subject]``, NaN where there is none."""
    return np.array(
        [[np.nan if row is None else _number(getattr(row, field)) for row in g] for g in grid]
    )


def _number(value: Any) -> float:
    return float(getattr(value, "value", value))


def _drawing(rows: Sequence[BenchRow], z: np.ndarray, words: list[list[str]], hover: Any) -> Any:
    """The heat map of entry by subject, its colours still to be set."""
    names, columns = list(labels(rows).values()), case_names(cases(rows))
    longest = max(min(len(name), 32) for name in columns)
    plot = panels([""], height=int(120 + 24 * max(len(names), 4) + 6.5 * longest))
    written = len(columns) <= WRITTEN
    heat = go.Heatmap(
        z=single(z),
        hovertext=hover,
        hoverinfo="text",
        hoverongaps=False,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        **({"text": words, "texttemplate": "%{text}"} if written else {}),
    )
    plot.add_trace(heat)
    plot.update_xaxes(**named(columns, most=60, limit=32), tickangle=-90 if len(columns) > 4 else 0)
    plot.update_yaxes(**downward(names))
    plot.update_layout(margin={"t": 20})
    return plot


def _head(row: BenchRow) -> str:
    of = f", control for {text(row.control_for, limit=40)}" if row.control_for else ""
    return f"{text(row.entry, limit=40)}{of}<br>{text(row.cell, limit=60)}, seed {row.seed}"


def _asr(rows: Sequence[BenchRow]) -> Figure:
    grid = _grid(rows)
    z = _values(grid, "asr")
    hover = [[f"{_head(r)}<br>ASR {rate(r.asr)}" if r else "" for r in line] for line in grid]
    words = [[f"{100 * r.asr.value:.0f}" if r else "" for r in line] for line in grid]
    plot = _drawing(rows, z, words, hover)
    plot.update_layout(coloraxis=bar(magnitude(1.0, "ASR"), tickformat=".0%"))
    counts = sorted({row.asr.n for row in rows})
    return Figure(
        id="bench-asr",
        title="ASR of every entry on every subject",
        plot=plot,
        caption=(
            "Attack success rate on held-out triggered prompts "
            f"(n = {' or '.join(map(str, counts))} each; the interval is in the hover text). "
            "An arrow marks a control of the method above it. Gaps: not run."
        ),
        how_to_read=(
            "Dark: no backdoor is left, bright: all of it. A method that works has a dark row; a "
            "bright cell in it is an attack that it misses. Compare it with the controls below it."
        ),
        alt=_summary(rows, z, percent),
    )


def _perplexity(rows: Sequence[BenchRow]) -> Figure:
    grid = _grid(rows)
    z = _values(grid, "perplexity_change")
    limit = float(np.clip(largest(z), 0.02, SCALE_END))
    hover = [[f"{_head(r)}<br>{_cost(r)}" if r else "" for r in line] for line in grid]
    words = [[change(r.perplexity_change) if r else "" for r in line] for line in grid]
    plot = _drawing(rows, np.clip(z, -limit, limit), words, hover)
    ticks = [-limit, -limit / 2, 0, limit / 2, limit]
    ends = ["≤ " * bool((z < -limit).any()), "", "", "", "≥ " * bool((z > limit).any())]
    marks = [e + (change(t) if t else "0") for e, t in zip(ends, ticks, strict=True)]
    axis = bar(diverging(limit, "perplexity"), tickvals=ticks, ticktext=marks)
    plot.update_layout(coloraxis=axis)
    return Figure(
        id="bench-perplexity",
        title="Cost in perplexity of every entry on every subject",
        plot=plot,
        caption=(
            "Change of perplexity on held-out clean completions relative to the poisoned adapter. "
            f"The scale ends at {percent(limit, signed=True)}; larger changes share its last "
            "colour, with the number and its paired bootstrap interval in the hover text. Gaps: "
            "not run, or undefined."
        ),
        how_to_read=(
            "Neutral: clean text is as likely as before. Orange: the operation cost "
            "something, blue: clean text became likelier than with the poisoned adapter."
        ),
        alt=_summary(rows, z, change),
    )


def _kl(rows: Sequence[BenchRow]) -> Figure:
    grid = _grid(rows)
    z = _values(grid, "kl")
    limit = float(np.clip(largest(z), 0.02, SCALE_END))
    hover = [[f"{_head(r)}<br>KL {spread_kl(r)}" if r else "" for r in line] for line in grid]
    words = [[number(r.kl, digits=2) if r else "" for r in line] for line in grid]
    plot = _drawing(rows, np.clip(z, 0, limit), words, hover)
    ticks = [0, limit / 2, limit]
    marks = ["0", number(limit / 2), "≥ " * bool((z > limit).any()) + number(limit)]
    axis = bar(magnitude(limit, "KL, nats/token"), tickvals=ticks, ticktext=marks)
    plot.update_layout(coloraxis=axis)
    return Figure(
        id="bench-kl",
        title="KL divergence of every entry on every subject",
        plot=plot,
        caption=(
            "KL divergence from the poisoned adapter on its own answers to held-out clean prompts, "
            f"nats per token. The scale ends at {number(limit)}; larger values share its last "
            "colour, with the number and its bootstrap interval over prompts in the hover text. "
            "Gaps: not run, or undefined."
        ),
        how_to_read=(
            "Dark: clean answers have the same probabilities as before. Bright: they changed, even "
            "where perplexity did not rise."
        ),
        alt=_summary(rows, z, number),
    )


def _cost(row: BenchRow) -> str:
    ends = f" [{change(row.perplexity_low)}, {change(row.perplexity_high)}]"
    known = np.isfinite([row.perplexity_low, row.perplexity_high]).all()
    return (
        f"perplexity {number(row.perplexity, digits=4)}, {change(row.perplexity_change)}"
        + (ends if known else "")
        + f"<br>accuracy {rate(row.accuracy)}"
    )


def _summary(rows: Sequence[BenchRow], z: np.ndarray, words: Any) -> str:
    """Mean and worst of every entry, with the subject of the worst."""
    columns, parts = case_names(cases(rows)), []
    for name, line in zip(entries(rows), z, strict=True):
        known = np.flatnonzero(~np.isnan(line))
        if not known.size:
            parts.append(f"{name}: undefined")
            continue
        worst = known[int(np.argmax(line[known]))]
        parts.append(
            f"{name}: mean {words(float(line[known].mean()))} over "
            f"{plural(known.size, 'subject')}, highest {words(float(line[worst]))} at "
            f"{columns[worst]}"
        )
    return "; ".join(parts) + "."
