"""What was cut: directions by layer and kind, the calibration path, losses of trained methods."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from ...core.records.results import CutPath, Operation, RunRecords
from ..base.figure import FIGURES, Figure, slug, unique
from ..base.grid import add_map, height, layout
from ..base.text import number, percent, plural, visible
from ..base.theme import BLUE, MUTED, ORANGE, clear, counts, largest, marks, panels, single, text

DIRECTIONS = {
    "singular": "Singular directions of the change",
    "discriminant": "Directions that tell triggered from clean prompts apart",
}
"""What is cut, by `Operation.basis`."""


def _first(item: Operation) -> str:
    """The first directions in the order of the cut, in words."""
    if not item.order:
        return ""
    some = ", ".join(visible(name) for name in item.order[:5])
    more = f" and {len(item.order) - 5:,} more (operation.json)" if len(item.order) > 5 else ""
    return f" In this order: {some}{more}."


@FIGURES.register("cut")
def cut(records: RunRecords) -> list[Figure]:
    """Per operation the map of its cut and its calibration path; then the losses of all fits."""
    taken: set[str] = set()
    out = []
    for item in records.operations:
        name = unique(slug(item.subject), taken)
        if item.kept.size and item.modules:
            out.append(_map(item, f"cut-{name}"))
        if item.path is not None and len(item.path.size):
            out.append(_path(item, item.path, f"cut-path-{name}"))
    trained = [item for item in records.operations if item.fit is not None and len(item.loss)]
    return [*out, _losses(records, trained)] if trained else out


def _map(item: Operation, name: str) -> Figure:
    place = layout(item.modules, item.module_layers)
    gone = place.fill((item.kept == 0).sum(1).astype(float), np.sum)
    rank = place.fill(np.isfinite(item.kept).sum(1).astype(float), np.sum)
    names = place.names()
    hover = [
        [f"{cell}<br>{gone[r, c]:.0f} of {rank[r, c]:.0f} cut" for c, cell in enumerate(line)]
        for r, line in enumerate(names)
    ]
    plot = panels(["directions cut"], height=height(len(place.layers)))
    trace = add_map(plot, place, gone, hover, column=1, axis="coloraxis")
    written = [["" if np.isnan(v) or v == 0 else f"{v:.0f}" for v in line] for line in gone]
    plot.update_traces(text=written, texttemplate="%{text}", selector={"type": trace.type})
    plot.update_yaxes(title_text="layer")
    plot.update_layout(coloraxis=counts(largest(rank), "cut"))
    share = item.directions_cut / max(item.directions_total, 1)
    touched = int((np.nan_to_num(gone) > 0).sum())
    return Figure(
        id=name,
        title=f"The cut of {item.subject}",
        plot=plot,
        caption=(
            f"{DIRECTIONS[item.basis]} removed, of the rank of each module: "
            f"{item.directions_cut:,} of {item.directions_total:,} ({percent(share)}). Change of "
            f"the adapter: {percent(item.change_norm)} of its norm. In its own words: "
            f"{item.summary}.{_first(item)}"
        ),
        how_to_read=(
            "The number in a cell is how many directions of that module were cut; no number "
            "means none. The scale ends at the full rank. A cut spread over all cells is a "
            "blunt one; the smaller and more local, the more it says about where the backdoor is."
        ),
        alt=f"{item.subject}: {item.directions_cut:,} of "
        f"{plural(item.directions_total, 'direction')} cut, in "
        f"{plural(touched, 'module')} of {int(np.isfinite(gone).sum()):,}.",
    )


def _path(item: Operation, path: CutPath, name: str) -> Figure:
    plot = panels(["attack success rate (ASR)", "perplexity on clean rows"], height=340)
    x, asr = path.size, path.asr
    places = np.log2(1 + x)
    band = go.Scatter(
        x=single(np.concatenate([places, places[::-1]])),
        y=single(np.concatenate([asr[:, 2], asr[::-1, 1]])),
        fill="toself",
        fillcolor=clear(BLUE, 0.18),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )
    plot.add_trace(band, row=1, col=1)
    unit = text(path.unit)
    rates = [
        f"{d:g} {unit} cut<br>ASR {percent(v)} [{percent(a)}, {percent(b)}]"
        for d, (v, a, b) in zip(x, asr.tolist(), strict=True)
    ]
    costs = [
        f"{d:g} {unit} cut<br>perplexity {number(float(p))}"
        for d, p in zip(x, path.perplexity, strict=True)
    ]
    for column, (y, words) in enumerate(((asr[:, 0], rates), (path.perplexity, costs)), 1):
        line = go.Scatter(
            x=single(places),
            y=single(y),
            mode="lines+markers",
            line={"color": BLUE, "width": 2},
            marker={"size": 5},
            hovertext=words,
            hoverinfo="text",
        )
        plot.add_trace(line, row=1, col=column)
        _chosen(plot, path, y, column)
    plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", row=1, col=1)
    allowed = float(path.perplexity[0]) * (1 + path.budget)
    limit: dict[str, Any] = {"color": MUTED, "dash": "dot", "width": 1}
    plot.add_hline(y=allowed, line=limit, row=1, col=2)  # pyright: ignore[reportArgumentType]
    if spread(path.perplexity) > 10:
        plot.update_yaxes(type="log", exponentformat="power", row=1, col=2)
    plot.update_xaxes(**_ticks(x), title_text=f"{unit} cut")
    plot.update_layout(showlegend=False, margin={"t": 44})
    chosen = path.chosen
    goal = "The method met" if item.reached else "The method did not meet"
    return Figure(
        id=name,
        title=f"Calibration of {item.subject}",
        plot=plot,
        caption=(
            f"From nothing cut to all cut, on the calibration split "
            f"({plural(path.asr_n, 'triggered prompt')}; band: 95 % interval). Dashed: the step "
            f"taken, {x[chosen]:g} {path.unit}; dotted: the perplexity allowed. The horizontal "
            f"axis is logarithmic. {goal} its own goal here, an ASR of {percent(path.goal)} within "
            f"{percent(path.budget, signed=True)} perplexity."
        ),
        how_to_read=(
            "Left, how fast the backdoor goes; right, what it costs. A good cut lies where ASR has "
            "fallen and perplexity has not yet risen. This is calibration data: the trade-off "
            "figure has the held-out numbers."
        ),
        alt=f"Chosen: {x[chosen]:g} {path.unit} cut, calibration ASR "
        f"{percent(float(asr[chosen, 0]))}, perplexity {number(float(path.perplexity[chosen]))}; "
        f"with nothing cut {percent(float(asr[0, 0]))} and {number(float(path.perplexity[0]))}.",
    )


def _ticks(directions: np.ndarray) -> dict[str, Any]:
    """Labels of the logarithmic axis, at steps that stand far enough apart to be read."""
    kept: list[int] = []
    room = float(np.log2(1 + directions.max())) / 9
    for count in sorted({int(d) for d in directions}):
        if not kept or np.log2(1 + count) - np.log2(1 + kept[-1]) >= room:
            kept.append(count)
    return {
        "tickmode": "array",
        "tickvals": [float(np.log2(1 + count)) for count in kept],
        "ticktext": [f"{count:,}" for count in kept],
    }


def _chosen(plot: go.Figure, path: CutPath, y: np.ndarray, column: int) -> None:
    at = float(np.log2(1 + path.size[path.chosen]))
    line = {"color": ORANGE, "dash": "dash", "width": 1.5}
    spot: dict[str, Any] = {"row": 1, "col": column}
    plot.add_vline(x=at, line=line, **spot)
    mark = go.Scatter(
        x=[at],
        y=single([y[path.chosen]]),
        mode="markers",
        marker={"color": ORANGE, "size": 11, "symbol": "diamond"},
        hoverinfo="skip",
    )
    plot.add_trace(mark, **spot)


def spread(values: np.ndarray) -> float:
    """Largest over smallest positive value, 1 when there are none."""
    good = values[np.isfinite(values) & (values > 0)]
    return float(good.max() / good.min()) if good.size else 1.0


def _losses(records: RunRecords, trained: list[Operation]) -> Figure:
    colours = marks(records)
    plot = panels([""], height=340)
    for item in trained:
        name = text(item.subject)
        line = go.Scatter(
            x=single(item.loss_step),
            y=single(item.loss),
            mode="lines",
            name=name,
            line={"color": colours[item.subject][0], "width": 2},
            hovertext=[
                f"{name}, step {number(float(s))}<br>loss {number(float(v))}"
                for s, v in zip(item.loss_step, item.loss, strict=True)
            ],
            hoverinfo="text",
        )
        plot.add_trace(line)
    plot.update_xaxes(title_text="optimiser step", rangemode="tozero")
    plot.update_yaxes(title_text="loss", zeroline=True, zerolinecolor=MUTED)
    plot.update_layout(showlegend=True, legend={"y": 1.02}, margin={"t": 50})
    ends = [
        f"{item.subject} {number(float(item.loss[0]))} to {number(float(item.loss[-1]))}"
        for item in trained
    ]
    return Figure(
        id="cut-losses",
        title="Loss of the trained operations",
        plot=plot,
        caption="Training loss of each operation that trains, along its optimiser steps.",
        how_to_read=(
            "Each method has its own loss, so compare the shapes and not the heights: falling and "
            "flattening is a finished training, rising a diverging one."
        ),
        alt=f"Loss from first to last step: {'; '.join(ends)}.",
    )
