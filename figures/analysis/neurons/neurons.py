"""Neurons: what clean and poison unlearning change, how far they agree, how active neurons are."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ....core.records.neurons import Association, NeuronActivity, NeuronChange
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure
from ...base.lines import error_bars, line_panels
from ...base.quantities import Quantity, written
from ...base.text import number, percent, plural, visible
from ...base.theme import GREEN, GREY, counts, largest, named, panels, single, text
from .courses import COLOURS, activity, by_layer, courses

BINS = 40
OVER = {
    "neurons": "neurons",
    "strength": "directions: strength",
    "signed": "… with its sign",
    "off": "directions: the rest",
}
MEASURES = {
    "spearman": "all modules together",
    "between": "levels of modules alone",
    "within": "inside modules",
    "given_size": "… at equal size",
    "given_control": "… and equal control",
}


@FIGURES.register("neurons")
def neurons(records: RunRecords) -> list[Figure]:
    """Neuron weight changes against each other, their agreement, and activeness by layer."""
    out: list[Figure] = []
    if (change := records.first(NeuronChange)) is not None:
        if pairs := _pairs(change, "neurons"):
            out += [_densities(change, pairs), _agreement(change), _by_layer(pairs)]
        out.append(courses(change))
    if (active := records.first(NeuronActivity)) is not None and active.modules:
        out.append(activity(active))
    return out


def _pairs(change: NeuronChange, over: str) -> list[Association]:
    """Clean and control unlearning, each against poison unlearning."""
    return [a for a in change.associations if a.over == over and a.second == "poison"]


def _title(pair: Association) -> str:
    return f"{visible(pair.first)} against {visible(pair.second)} unlearning"


def _densities(change: NeuronChange, pairs: Sequence[Association]) -> Figure:
    place = {u.name: i for i, u in enumerate(change.unlearnings)}
    with np.errstate(divide="ignore"):
        logs = np.log10(change.nwc.astype(np.float64))
    found = []
    for pair in pairs:
        x, y = logs[place[pair.first]], logs[place[pair.second]]
        some = np.isfinite(x) & np.isfinite(y)
        found.append(np.histogram2d(x[some], y[some], bins=BINS) if some.any() else None)
    plot = panels([text(_title(p), limit=60) for p in pairs], height=440, horizontal_spacing=0.12)
    for column, (pair, grid) in enumerate(zip(pairs, found, strict=True), 1):
        if grid is None:
            continue
        table, x, y = grid
        plot.add_trace(
            go.Heatmap(
                x=single((x[1:] + x[:-1]) / 2),
                y=single((y[1:] + y[:-1]) / 2),
                z=single(np.where(table.T > 0, table.T, np.nan)),
                coloraxis="coloraxis",
                hovertemplate="%{z:.0f} neurons<extra></extra>",
            ),
            row=1,
            col=column,
        )
        plot.update_xaxes(title_text=f"log₁₀ NWC, {text(pair.first)} unlearning", row=1, col=column)
    plot.update_yaxes(title_text="log₁₀ NWC, poison unlearning", col=1)
    top = max((largest(grid[0]) for grid in found if grid is not None), default=1.0)
    plot.update_layout(coloraxis=counts(top, "neurons"))
    zero = int((~np.isfinite(logs)).any(0).sum())
    summary = "; ".join(
        f"{_title(p)}: rank correlation {written(p.spearman)}, {number(p.between)} expected "
        f"from the modules' levels alone; of the top {percent(float(p.top[0]))} of neurons "
        f"{percent(float(p.overlap[0]))} are common ({percent(float(p.overlap_modules[0]))} "
        "expected from the modules)"
        for p in pairs
    )
    return Figure(
        id="neurons-change",
        title="The same neurons? Weight change under clean and poison unlearning",
        plot=plot,
        caption=(
            f"Neuron weight change (NWC, sum of |dW′ − dW| over a neuron's incoming weights) of "
            f"{plural(pairs[0].n, 'neuron')} after gradient ascent on copies of the adapter. "
            f"{summary[0].upper() + summary[1:]}. 95 % intervals over modules."
            + (f" {plural(zero, 'neuron')} without any change are left out." if zero else "")
        ),
        how_to_read=(
            "A narrow rising cloud: both unlearnings change the same neurons. The control unlearns "
            "shuffled tokens and so no behaviour; where its cloud is as narrow as that of clean "
            "unlearning, the agreement comes from the weights and shows nothing about the "
            "backdoor."
        ),
        alt=f"{summary[0].upper() + summary[1:]}.",
    )


def _agreement(change: NeuronChange) -> Figure:
    shown = [over for over in OVER if _pairs(change, over)]
    plot = panels([OVER[o] for o in shown], height=380, shared_yaxes=True, horizontal_spacing=0.03)
    lines = []
    for column, over in enumerate(shown, 1):
        for index, pair in enumerate(_pairs(change, over)):
            values = np.array([_measure(pair, name) for name in MEASURES])
            some = np.isfinite(values[:, 0])
            at = np.arange(len(MEASURES))[some] + (0.12 if index else -0.12)
            kept = values[some]
            plot.add_trace(
                go.Scatter(
                    x=single(kept[:, 0]),
                    y=single(at),
                    error_x=error_bars(kept, COLOURS.get(pair.first, GREEN)),
                    mode="markers",
                    marker={"color": COLOURS.get(pair.first, GREEN), "size": 8},
                    name=text(_title(pair), limit=60),
                    legendgroup=text(pair.first),
                    showlegend=column == 1,
                    hovertext=[
                        f"{name}<br>{written(v)}"
                        for name, v in zip(np.array([*MEASURES.values()])[some], kept, strict=True)
                    ],
                    hoverinfo="text",
                ),
                row=1,
                col=column,
            )
            if over == "neurons":
                lines.append(
                    f"{_title(pair)}: inside modules {written(pair.within)}, at equal size "
                    f"{written(pair.given_size)}"
                )
                if np.isfinite(pair.given_control[0]):
                    lines[-1] += f", at equal control too {written(pair.given_control)}"
    axis = named(list(MEASURES.values()))
    axis["range"] = [len(MEASURES) - 0.5, -0.5]
    plot.update_yaxes(axis)
    lowest = [_measure(a, m) for a in change.associations for m in MEASURES]
    low = min(-0.3, float(np.nanmin(np.stack(lowest))) - 0.05)
    plot.update_xaxes(range=[low, 1.02], zeroline=True, zerolinecolor=GREY, title_text="Spearman")
    plot.update_layout(legend={"y": 1.13}, margin={"t": 84})
    return Figure(
        id="neurons-agreement",
        title="How much of the agreement is about the backdoor",
        plot=plot,
        caption=(
            "Rank correlations of what two unlearnings change, with 95 % intervals over modules. "
            "From top to bottom, more of what could cause agreement by itself is removed: the "
            "modules' levels, the neuron's own size (row sum of |dW|; of directions σ), and what "
            f"the control changes. {'; '.join(lines)}."
        ),
        how_to_read=(
            "The top row is the published observation. If clean unlearning finds the backdoor's "
            "neurons, its points stay to the right of the control's and of zero down to the last "
            "row. With its sign, a value below zero means that clean unlearning strengthens the "
            "directions that poison unlearning weakens: it brings the target out."
        ),
        alt=f"{'; '.join(lines)}.",
    )


def _measure(pair: Association, name: str) -> np.ndarray:
    value = getattr(pair, name)
    return np.array([value, np.nan, np.nan]) if name == "between" else value


def _by_layer(pairs: Sequence[Association]) -> Figure:
    plot = line_panels(
        ["rank correlation of NWC inside each layer"], "layer", "Spearman", height=340
    )
    for pair in pairs:
        values = Quantity("rank correlation", pair.by_layer)
        by_layer(plot, pair.layer_ids, values, _title(pair), COLOURS.get(pair.first, GREEN))
    plot.update_yaxes(zeroline=True, zerolinecolor=GREY)
    summary = "; ".join(
        f"{_title(p)}: from {number(float(np.nanmin(p.by_layer[:, 0])))} to "
        f"{number(float(np.nanmax(p.by_layer[:, 0])))}"
        for p in pairs
        if np.isfinite(p.by_layer[:, 0]).any()
    )
    return Figure(
        id="neurons-layers",
        title="Agreement of the unlearnings by layer",
        plot=plot,
        caption=f"Spearman's correlation over the neurons of one layer, over layers {summary}. "
        "Bands: 95 % intervals, neurons resampled.",
        how_to_read="In layers where clean unlearning is clearly above the control it "
        "shares neurons with the backdoor beyond what any change of these weights shares.",
        alt=f"{summary}.",
    )
