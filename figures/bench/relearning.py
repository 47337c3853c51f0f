"""How soon a removed backdoor comes back when training goes on."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ...core.records.bench import BenchTable, Relearning
from ...core.stats import mean_interval
from ..base.figure import Figure
from ..base.lines import layer_lines, line_panels
from ..base.quantities import Quantity
from ..base.text import number, percent, plural
from ..base.theme import MUTED
from .entries import looks

BANDS = 4
"""Entries up to which intervals are drawn; of more they are in the hover text alone."""


def bench_relearning(table: BenchTable) -> list[Figure]:
    """ASR along further training steps, a panel for each kind of rows, a line for each entry."""
    found = table.relearning
    if not found:
        return []
    kinds = list(dict.fromkeys(item.rows for item in found))
    names = list(dict.fromkeys(item.entry for item in found))
    titles = [f"further training on {kind} rows" for kind in kinds]
    plot = line_panels(titles, "further optimiser steps", "ASR, held out", height=430)
    style = looks(table)
    for column, kind in enumerate(kinds, 1):
        for name in names:
            items = [item for item in found if (item.rows, item.entry) == (kind, name)]
            if items and len(steps := shared_steps(items)):
                curve = mean_curve(items, steps)
                count = plural(len(items), "subject")
                layer_lines(
                    plot,
                    Quantity("ASR", curve, "%"),
                    x=steps,
                    places=[f"step {number(float(step))}, {count}" for step in steps],
                    name=name,
                    look=style[name],
                    band=len(names) <= BANDS,
                    col=column,
                )
        _half(plot, [item for item in found if item.rows == kind], column)
    plot.update_xaxes(rangemode="tozero")
    plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%")
    lines = -(-len(names) // 5)
    plot.update_layout(legend={"y": 1.1}, margin={"t": 64 + 22 * lines})
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
                "adapter's ASR on the same prompts; the first step measured with as much counts "
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
    """Steps at which all of these were measured, ascending."""
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
