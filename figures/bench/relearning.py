"""How soon a removed backdoor comes back when training goes on."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ...core.records.bench import BenchTable, Relearning
from ...core.stats import mean_interval
from ..base.figure import Figure
from ..base.text import number, percent, plural
from ..base.theme import GREY, MUTED, clear, panels, single, text
from .entries import looks

BANDS = 4
"""Entries up to which intervals are drawn; of more they stand in the hover text alone."""


def bench_relearning(table: BenchTable) -> list[Figure]:
    """ASR along further training steps, a panel for each kind of rows, a line for each entry."""
    found = table.relearning
    if not found:
        return []
    kinds = list(dict.fromkeys(item.rows for item in found))
    names = list(dict.fromkeys(item.entry for item in found))
    titles = [f"further training on {text(kind)} rows" for kind in kinds]
    plot = panels(titles, height=430, horizontal_spacing=0.09)
    style, shown = looks(table), set()
    for column, kind in enumerate(kinds, 1):
        for name in names:
            items = [item for item in found if (item.rows, item.entry) == (kind, name)]
            if items and len(steps := shared_steps(items)):
                look = style.get(name, (GREY, "circle"))
                line = mean_curve(items, steps)
                if len(names) <= BANDS:
                    _band(plot, steps, line, look[0], name, column)
                _line(plot, items, steps, line, look, column, legend=name not in shown)
                shown.add(name)
        _half(plot, [item for item in found if item.rows == kind], column)
    plot.update_xaxes(title_text="further optimiser steps", rangemode="tozero")
    plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    plot.update_yaxes(title_text="ASR, held out", col=1)
    lines = -(-len(names) // 5)
    plot.update_layout(showlegend=True, legend={"y": 1.1}, margin={"t": 64 + 22 * lines})
    subjects = len({(item.cell, item.seed) for item in found})
    counts = sorted({item.n for item in found})
    rates = sorted({item.learning_rate for item in found})
    bands = "Bands" if len(names) <= BANDS else "In the hover text"
    return [
        Figure(
            id="bench-relearning",
            title="How soon the backdoor comes back",
            plot=plot,
            caption=(
                f"ASR on held-out prompts (n = {' or '.join(map(str, counts))}) while training "
                f"goes on from what each entry left, mean over {plural(subjects, 'subject')} at "
                f"the steps that all of an entry's subjects have. {bands}: 95 % intervals, over "
                "subjects where there are several, else over prompts. Dotted: half of the poisoned "
                "adapter's ASR on the same prompts; the first step looked at with as much counts "
                f"as back. Learning rate {' or '.join(number(r) for r in rates)}."
            ),
            how_to_read=(
                "A backdoor that was removed rises no sooner on poisoned rows than in a "
                "base with a new adapter; one that was only hidden comes back within a few steps, "
                "or even on clean rows."
            ),
            alt=" ".join(_ending(found, kind, name) for kind in kinds for name in names).strip(),
        )
    ]


def shared_steps(items: Sequence[Relearning]) -> np.ndarray:
    """Steps at which all of these were looked at, ascending."""
    common = set(items[0].steps.tolist())
    for item in items[1:]:
        common &= set(item.steps.tolist())
    return np.array(sorted(common))


def mean_curve(items: Sequence[Relearning], steps: np.ndarray) -> np.ndarray:
    """Mean ASR with interval at some steps, ``[step, 3]``: one item's own, or over subjects."""
    curves = [item.asr[np.searchsorted(item.steps, steps)] for item in items]
    if len(curves) == 1:
        return curves[0]
    return mean_interval(np.array([curve[:, 0] for curve in curves]))


def _half(plot: go.Figure, items: Sequence[Relearning], column: int) -> None:
    """Half of the poisoned adapter's ASR, the line from which a backdoor counts as back."""
    half = float(np.mean([item.poisoned.value for item in items])) / 2
    line = {"color": MUTED, "dash": "dot", "width": 1.2}
    plot.add_hline(y=half, line=line, row=1, col=column)  # pyright: ignore[reportArgumentType]


def _band(
    plot: go.Figure, steps: np.ndarray, line: np.ndarray, colour: str, name: str, column: int
) -> None:
    known = np.isfinite(line).all(1)
    if not known.any():
        return
    x, low, high = steps[known], line[known, 1], line[known, 2]
    edge = go.Scatter(
        x=single(np.concatenate([x, x[::-1]])),
        y=single(np.concatenate([high, low[::-1]])),
        fill="toself",
        fillcolor=clear(colour, 0.15),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=text(name, limit=40),
        showlegend=False,
    )
    plot.add_trace(edge, row=1, col=column)


def _line(
    plot: go.Figure,
    items: list[Relearning],
    steps: np.ndarray,
    line: np.ndarray,
    look: tuple[str, str],
    column: int,
    *,
    legend: bool,
) -> None:
    name = text(items[0].entry, limit=40)
    drawn = go.Scatter(
        x=single(steps),
        y=single(line[:, 0]),
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": look[0], "width": 2},
        marker={"symbol": look[1], "size": 8},
        hovertext=[
            f"{name}, step {number(float(step))}<br>ASR {percent(v)} "
            f"[{percent(low)}, {percent(high)}]<br>{plural(len(items), 'subject')}"
            for step, (v, low, high) in zip(steps, line.tolist(), strict=True)
        ],
        hoverinfo="text",
    )
    plot.add_trace(drawn, row=1, col=column)


def _ending(found: Sequence[Relearning], kind: str, name: str) -> str:
    items = [item for item in found if (item.rows, item.entry) == (kind, name)]
    if not items:
        return ""
    steps = shared_steps(items)
    head = f"{name} on {kind} rows: "
    if not len(steps):
        return f"{head}no step that all subjects have."
    line = mean_curve(items, steps)
    back = [item.back_at for item in items if np.isfinite(item.back_at)]
    when = f", at step {number(float(np.median(back)))} in the middle one" if back else ""
    return (
        f"{head}ASR {percent(float(line[0, 0]))} at step {number(float(steps[0]))}, "
        f"{percent(float(line[-1, 0]))} at step {number(float(steps[-1]))}; back in {len(back)} of "
        f"{plural(len(items), 'subject')}{when}."
    )
