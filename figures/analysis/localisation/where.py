"""Which layers, modules and singular directions carry the target."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.patching import Where
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure
from ...base.grid import kind_of, layout, strongest
from ...base.lines import error_bars
from ...base.maps import layer_labels, layer_map, layer_name, module_panel
from ...base.quantities import Quantity, written
from ...base.text import number, plural
from ...base.theme import BLUE, GREY, MUTED, ORANGE, diverging, largest, named, panels, single, text

TOP = 12
"""Directions named one by one."""
UNIT = "nats"


@FIGURES.register("where")
def where(records: RunRecords) -> list[Figure]:
    """Effects of removing each layer, each module and the strongest directions."""
    item = records.first(Where)
    if item is None:
        return []
    out = []
    if len(item.layer_ids):
        out.append(_layers(item))
    if item.modules:
        out.append(_modules(item))
    if np.isfinite(item.direction_attribution).any():
        out.append(_directions(item))
    return out


def _layers(item: Where) -> Figure:
    effect = item.layer_effect
    labels = layer_labels(item.layer_ids)
    plot = panels([""], height=340)
    plot.add_trace(
        go.Bar(
            x=list(range(len(labels))),
            y=single(effect[:, 0]),
            marker={"color": BLUE},
            error_y=error_bars(effect, MUTED, width=4),
            hovertext=[
                f"{layer_name(int(layer))}<br>effect {written(values, UNIT)}"
                for layer, values in zip(item.layer_ids, effect, strict=True)
            ],
            hoverinfo="text",
            meta={"link": "bar", "layers": [int(layer) for layer in item.layer_ids]},
        )
    )
    plot.update_layout(bargap=0.35, margin={"t": 20})
    plot.update_xaxes(**named(labels), title_text="layer")
    plot.update_yaxes(title_text=f"effect ({UNIT})", zeroline=True, zerolinecolor=MUTED)
    best = int(np.nanargmax(effect[:, 0])) if np.isfinite(effect[:, 0]).any() else None
    return Figure(
        id="where-layers",
        title="Effect of removing each layer's part of the adapter",
        plot=plot,
        caption=(
            "Drop of the target's log-probability when one layer's part of the adapter is removed, "
            f"mean over {plural(item.n_prompts, 'triggered prompt')} with bootstrap 95 % "
            f"intervals. Removing the whole adapter: {number(item.whole_effect)} {UNIT}."
        ),
        how_to_read=(
            "A high bar: without this layer's part the target is much less likely. A bar whose "
            "interval reaches 0 may do nothing. Bars do not add up to the whole effect, because "
            "layers act on one another."
        ),
        alt="No layer has a defined effect."
        if best is None
        else f"Strongest layer: {labels[best]}, effect {written(effect[best], UNIT)}.",
    )


def _modules(item: Where) -> Figure:
    place = layout(item.modules, item.module_layers)
    effect = np.stack([place.fill(values, strongest) for values in item.module_effect.T], -1)
    panel = module_panel(place, "effect of removing one module", Quantity("effect", effect, UNIT))
    limit = largest(panel.values) or 1.0
    return Figure(
        id="where-modules",
        title="Effect of removing each module's part of the adapter",
        plot=layer_map([panel], diverging(limit, f"effect ({UNIT})")),
        caption=(
            "Drop of the target's log-probability when one module's part of the adapter is "
            f"removed, mean over {plural(item.n_prompts, 'triggered prompt')}; zero-centred."
        ),
        how_to_read=(
            "Orange: the module helps the target. Blue: the target is more likely without it. "
            "Hover for the interval before believing a single cell."
        ),
        alt=f"Strongest module: {panel.strongest()}.",
    )


def direction_name(item: Where, index: int) -> str:
    """Short name of a direction: layer, kind, place in the spectrum from 0."""
    module = int(item.direction_module[index])
    layer = int(item.module_layers[module])
    return f"{layer_name(layer)} {kind_of(item.modules[module])} #{int(item.direction_rank[index])}"


def _directions(item: Where) -> Figure:
    order = np.argsort(-np.nan_to_num(item.direction_attribution, nan=-np.inf))[:TOP]
    checked = np.flatnonzero(np.isfinite(item.direction_exact))
    plot = panels(
        ["strongest directions", "attribution against exact, where checked"],
        height=110 + 26 * max(len(order), 8),
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.12,
    )
    labels = [direction_name(item, int(i)) for i in order]
    series = (
        ("attribution (first order)", item.direction_attribution, ORANGE, "circle-open"),
        ("exact", item.direction_exact, BLUE, "diamond"),
    )
    for name, values, colour, symbol in series:
        plot.add_trace(
            go.Scatter(
                x=single(values[order]),
                y=list(range(len(order))),
                mode="markers",
                name=name,
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": 10,
                    "line": {"width": 2, "color": colour},
                },
                hovertext=[_direction_hover(item, int(i)) for i in order],
                hoverinfo="text",
            ),
            row=1,
            col=1,
        )
    _scatter(plot, item, checked)
    axis = named(labels) | {"range": [len(order) - 0.5, -0.5], "showgrid": True}
    plot.update_yaxes(**axis, row=1, col=1)
    plot.update_xaxes(title_text=f"effect ({UNIT})", zeroline=True, zerolinecolor=MUTED)
    plot.update_xaxes(title_text=f"attribution ({UNIT})", row=1, col=2)
    plot.update_yaxes(title_text=f"exact ({UNIT})", row=1, col=2)
    plot.update_layout(legend={"y": 1.1}, margin={"t": 78})
    top = int(order[0])
    return Figure(
        id="where-directions",
        title="Strongest singular directions",
        plot=plot,
        caption=(
            f"The {plural(len(order), 'direction')} with the highest attribution of "
            f"{len(item.direction_attribution):,}; exact effects were measured for "
            f"{plural(len(checked), 'direction')}. Spearman correlation of attribution and exact "
            f"effect: {number(item.agreement)}."
        ),
        how_to_read=(
            "Attribution is a first-order estimate from one backward pass; exact removes the "
            "direction and measures. Points on the dashed line agree; where the correlation is "
            "low, only the exact values count."
        ),
        alt=f"Highest attribution: {labels[0]} with "
        f"{number(float(item.direction_attribution[top]))}, exact "
        f"{_exact(float(item.direction_exact[top]))} {UNIT}.",
    )


def _exact(value: float) -> str:
    return "not measured" if np.isnan(value) else number(value)


def _direction_hover(item: Where, index: int) -> str:
    name = text(item.modules[int(item.direction_module[index])], limit=80)
    return (
        f"{name}, direction {int(item.direction_rank[index])}"
        f"<br>σ {number(float(item.direction_sigma[index]))}"
        f"<br>attribution {number(float(item.direction_attribution[index]))}, "
        f"exact {_exact(float(item.direction_exact[index]))} {UNIT}"
        f"<br>cost on clean prompts {number(float(item.direction_clean_cost[index]))}"
    )


def _scatter(plot: go.Figure, item: Where, checked: np.ndarray) -> None:
    if not checked.size:
        return
    x, y = item.direction_attribution[checked], item.direction_exact[checked]
    both = np.concatenate([x, y])
    ends = single([np.nanmin(both), np.nanmax(both)])
    line = go.Scatter(
        x=ends,
        y=ends,
        mode="lines",
        line={"color": GREY, "dash": "dash", "width": 1},
        hoverinfo="skip",
        showlegend=False,
    )
    points = go.Scatter(
        x=single(x),
        y=single(y),
        mode="markers",
        marker={"color": BLUE, "size": 7, "opacity": 0.75},
        hovertext=[_direction_hover(item, int(i)) for i in checked],
        hoverinfo="text",
        showlegend=False,
    )
    plot.add_traces([line, points], rows=[1, 1], cols=[2, 2])
