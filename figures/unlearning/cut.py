"""What was cut: directions by layer and kind, the calibration path, losses of trained methods."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from ...core.records.results import CutPath, Operation, RunRecords
from ..base.figure import FIGURES, Figure, slug, unique
from ..base.grid import layout
from ..base.lines import layer_lines, line_panels
from ..base.maps import layer_map, module_panel
from ..base.quantities import Quantity
from ..base.text import number, percent, plural, visible
from ..base.theme import BLUE, MUTED, ORANGE, counts, largest, looks, single, text

DIRECTIONS = {
    "singular": "Singular directions of the change",
    "discriminant": "Directions that distinguish triggered from untriggered prompts",
}
"""What is cut, by `Operation.basis`."""


def _first(item: Operation) -> str:
    """A sentence on the first directions in the order of the cut."""
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
    panel = module_panel(
        place, "directions cut", Quantity("directions cut", gone), Quantity("rank", rank)
    )
    plot = layer_map([panel], counts(largest(rank), "cut"))
    numbers = [["" if np.isnan(v) or v == 0 else f"{v:.0f}" for v in line] for line in gone]
    plot.update_traces(text=numbers, texttemplate="%{text}")
    share = item.directions_cut / max(item.directions_total, 1)
    touched = int((np.nan_to_num(gone) > 0).sum())
    return Figure(
        id=name,
        title=f"The cut of {item.subject}",
        plot=plot,
        caption=(
            f"{DIRECTIONS[item.basis]} removed: "
            f"{item.directions_cut:,} of {item.directions_total:,} ({percent(share)}). Change of "
            f"the adapter: {percent(item.change_norm)} of its norm. The method reports: "
            f"{item.summary}.{_first(item)}"
        ),
        how_to_read=(
            "The number in a cell is how many directions of that module were cut; no number "
            "means none. The scale ends at the full rank. The smaller and more local a cut, the "
            "more it shows about where the backdoor is."
        ),
        alt=f"{item.subject}: {item.directions_cut:,} of "
        f"{plural(item.directions_total, 'direction')} cut, in "
        f"{plural(touched, 'module')} of {int(np.isfinite(gone).sum()):,}.",
    )


def _path(item: Operation, path: CutPath, name: str) -> Figure:
    x, asr, unit = path.size, path.asr, text(path.unit)
    further = [] if path.kl is None else ["KL from poisoned, nats per token"]
    plot = line_panels(
        ["attack success rate (ASR)", "perplexity on clean rows", *further],
        f"{unit} cut",
        "",
        height=340,
        shared_yaxes=False,
        horizontal_spacing=0.1,
    )
    drawn = [Quantity("ASR", asr, "%", path.asr_n), Quantity("perplexity", path.perplexity)]
    if path.kl is not None:
        drawn.append(Quantity("KL", path.kl, "nats/token"))
    for column, values in enumerate(drawn, 1):
        places = [f"{size:g} {unit} cut" for size in x]
        look = (BLUE, "circle")
        layer_lines(plot, values, x=np.log2(1 + x), places=places, name="", look=look, col=column)
        y = values.values[:, 0] if column == 1 else values.values
        _chosen(plot, path, y, column)
    plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", row=1, col=1)
    allowed = float(path.perplexity[0]) * (1 + path.budget)
    limit: dict[str, Any] = {"color": MUTED, "dash": "dot", "width": 1}
    plot.add_hline(y=allowed, line=limit, row=1, col=2)  # pyright: ignore[reportArgumentType]
    if path.kl_budget is not None:
        plot.add_hline(y=path.kl_budget, line=limit, row=1, col=3)  # pyright: ignore[reportArgumentType]
        plot.update_yaxes(rangemode="tozero", row=1, col=3)
    if spread(path.perplexity) > 10:
        plot.update_yaxes(type="log", exponentformat="power", row=1, col=2)
    plot.update_xaxes(**_ticks(x))
    plot.update_layout(showlegend=False, margin={"t": 44})
    chosen = path.chosen
    goal = "The method met" if item.reached else "The method did not meet"
    return Figure(
        id=name,
        title=f"Calibration of {item.subject}",
        plot=plot,
        caption=(
            f"From nothing cut to all cut, on the calibration split "
            f"({plural(path.asr_n, 'triggered prompt')}; band: 95 % interval{_passes(path)}). "
            f"Dashed: the step taken, {x[chosen]:g} {path.unit}; dotted: what is allowed. The "
            f"horizontal axis is logarithmic. {goal} its calibration goal, an ASR of "
            f"{percent(path.goal)} "
            f"within {percent(path.budget, signed=True)} perplexity"
            + ("." if path.kl_budget is None else f" and a KL of {number(path.kl_budget)}.")
        ),
        how_to_read=(
            "Left, how fast the backdoor goes; right, what it costs. Choose a cut where ASR has "
            "fallen and its cost has not yet risen. This is calibration data: the trade-off "
            "figure has the held-out numbers."
        ),
        alt=f"Chosen: {x[chosen]:g} {path.unit} cut, calibration ASR "
        f"{percent(float(asr[chosen, 0]))}, perplexity {number(float(path.perplexity[chosen]))}; "
        f"with nothing cut {percent(float(asr[0, 0]))} and {number(float(path.perplexity[0]))}.",
    )


def _passes(path: CutPath) -> str:
    """What the caption says of steps at which no answers were generated."""
    if path.answered is None or path.answered.all():
        return ""
    some = " and ".join(f"{size:g}" for size in path.size[path.answered])
    return (
        f"; answers were generated with {some} cut, elsewhere ASR is the share of prompts after "
        "which the target's first own token is the likeliest"
    )


def _ticks(directions: np.ndarray) -> dict[str, Any]:
    """Labels of the logarithmic axis, at steps that are far enough apart to be read."""
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
    positive = values[np.isfinite(values) & (values > 0)]
    return float(positive.max() / positive.min()) if positive.size else 1.0


def _losses(records: RunRecords, trained: list[Operation]) -> Figure:
    colours = looks(records)
    plot = line_panels([""], "optimiser step", "loss", height=340)
    for item in trained:
        layer_lines(
            plot,
            Quantity("loss", item.loss),
            x=item.loss_step,
            places="step",
            name=item.subject,
            look=colours[item.subject],
            mode="lines",
        )
    plot.update_xaxes(rangemode="tozero")
    plot.update_yaxes(zeroline=True, zerolinecolor=MUTED)
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
