"""Wall time of the bench's entries, beside a quarter of one negative fine-tuning."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from ...core.records.bench import BenchRow, BenchTable
from ..base.figure import Figure
from ..base.text import number, plural
from ..base.theme import GREY, INK, MUTED, ORANGE, clear, panels, single, text
from .entries import downward, entries, labels, looks

FITTED, QUARTER = "negative", 0.25
"""The entry that times are compared with, and the share of its time that is the limit."""


def bench_seconds(table: BenchTable) -> list[Figure]:
    """Time of every entry on a logarithmic axis: each subject, the mean, and until it was found."""
    timed = [row for row in table.rows if np.isfinite(row.seconds) and row.seconds > 0]
    if not timed:
        return []
    written = labels(table.rows)
    names = [e for e in entries(table.rows) if any(row.entry == e for row in timed)]
    found = {e: [row for row in timed if row.entry == e] for e in names}
    plot = panels([""], height=150 + 26 * max(len(names), 3))
    style = looks(table)
    _points(plot, found)
    for place, name in enumerate(names):
        _means(plot, found[name], place, style[name], first=place == 0)
    fitted = float(np.mean([row.seconds for row in found.get(FITTED, [])] or [np.nan]))
    if np.isfinite(fitted):
        quarter = go.Scatter(
            x=single([QUARTER * fitted] * 2),
            y=[-0.5, len(names) - 0.5],
            mode="lines",
            line={"color": ORANGE, "dash": "dash", "width": 1.8},
            name=f"a quarter of {FITTED}",
            hoverinfo="skip",
        )
        plot.add_trace(quarter)
    plot.update_xaxes(
        **_ticks([row.seconds for row in timed] + [row.search_seconds for row in timed])
    )
    plot.update_yaxes(**(downward([written[e] for e in names]) | {"showgrid": True}))
    plot.update_layout(legend={"y": 1.0 + 18 / 400}, margin={"t": 62})
    against = (
        f" Dashed: {number(QUARTER * fitted)} s, a quarter of the mean of {FITTED}."
        if np.isfinite(fitted)
        else f" {FITTED} was not run, so no line is drawn."
    )
    return [
        Figure(
            id="bench-seconds",
            title="How long it takes",
            plot=plot,
            caption=(
                "Wall time of the operation on a logarithmic axis. Small: each subject; "
                "large: their mean; hollow: mean time until the edit was found, where that is "
                f"less (the rest explains it).{against}"
            ),
            how_to_read=(
                "Guided surgery should find its cut (hollow, or filled where they are one) left "
                "of the dashed line. The goal itself is checked subject by subject, so that one "
                "slow hour of a machine does not decide."
            ),
            alt="; ".join(_alt(e, rows) for e, rows in found.items()) + f".{against}",
        )
    ]


def _ticks(seconds: list[float]) -> dict[str, Any]:
    """A logarithmic axis around some times, with ticks at 1, 2 and 5 of every decade."""
    known = np.array([s for s in seconds if np.isfinite(s) and s > 0])
    low, high = np.log10(known.min()), np.log10(known.max())
    room = max(0.05 * (high - low), 0.05)
    decades = range(int(np.floor(low)) - 1, int(np.ceil(high)) + 1)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return {
        "type": "log",
        "title_text": "seconds",
        "range": [float(low - room), float(high + room)],
        "tickvals": ticks,
        "ticktext": [f"{tick:,g}" for tick in ticks],
    }


def _alt(name: str, rows: list[BenchRow]) -> str:
    total, search = _average(rows)
    until = f", {number(search)} s until found" if search < total else ""
    return f"{name}: {number(total)} s{until} over {plural(len(rows), 'subject')}"


def _average(rows: list[BenchRow]) -> tuple[float, float]:
    return (
        float(np.mean([row.seconds for row in rows])),
        float(np.mean([row.search_seconds for row in rows])),
    )


def _points(plot: go.Figure, found: dict[str, list[BenchRow]]) -> None:
    every = [(place, row) for place, rows in enumerate(found.values()) for row in rows]
    plot.add_trace(
        go.Scatter(
            x=single([row.seconds for _, row in every]),
            y=single([place for place, _ in every]),
            mode="markers",
            marker={"color": clear(GREY, 0.5), "size": 4},
            hovertext=[
                f"{text(row.entry, limit=40)}<br>{text(row.cell, limit=60)}, seed {row.seed}"
                f"<br>{number(row.seconds)} s, {number(row.search_seconds)} s until found"
                for _, row in every
            ],
            hoverinfo="text",
            name="each subject",
        )
    )


def _means(
    plot: go.Figure, rows: list[BenchRow], place: int, look: tuple[str, str], *, first: bool
) -> None:
    colour, symbol = look
    total, search = _average(rows)
    name = text(rows[0].entry, limit=40)
    if 0 < search < total:
        plot.add_trace(
            go.Scatter(
                x=single([search, total]),
                y=[place, place],
                mode="lines",
                line={"color": clear(colour, 0.6), "width": 2},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    for value, suffix, hollow in ((search, " until found", True), (total, "", False)):
        if hollow and not 0 < search < total:
            continue
        plot.add_trace(
            go.Scatter(
                x=single([value]),
                y=[place],
                mode="markers",
                marker={
                    "color": colour,
                    "symbol": f"{symbol}-open" if hollow else symbol,
                    "size": 11,
                    "line": {"color": colour if hollow else INK, "width": 2 if hollow else 0},
                },
                hovertext=[
                    f"{name}<br>mean {number(value)} s{suffix}, {plural(len(rows), 'subject')}"
                ],
                hoverinfo="text",
                showlegend=False,
            )
        )
    if first:
        for words, shape in (("mean", "circle"), ("mean until found", "circle-open")):
            marker = {"color": MUTED, "symbol": shape, "size": 10, "line": {"width": 2}}
            plot.add_trace(
                go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=words)
            )
