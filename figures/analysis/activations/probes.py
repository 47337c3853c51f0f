"""How well linear probes tell triggered prompts, layer by layer, beside their controls."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.activations import Probes
from ....core.records.results import RunRecords
from ...base.bands import band
from ...base.figure import FIGURES, Figure
from ...base.text import interval, number, plural
from ...base.theme import GREY, MUTED, OTHERS, VERMILLION, clear, marks, panels, single, text

TITLES = {
    "last": "last prompt position",
    "mean": "mean over the prompt",
    "trigger": "trigger's last position",
}


@FIGURES.register("probes")
def probes(records: RunRecords) -> list[Figure]:
    """AUROC of the probes by layer for every subject, and on other triggers."""
    item = records.first(Probes)
    if item is None:
        return []
    return [_layers(records, item), *([_transfer(item)] if item.others else [])]


def _frame(item: Probes) -> go.Figure:
    plot = panels(
        [TITLES.get(place, text(place)) for place in item.places],
        height=380,
        shared_yaxes="all",
        horizontal_spacing=0.04,
    )
    plot.update_xaxes(title_text="layer")
    plot.update_yaxes(range=[-0.03, 1.03], dtick=0.25)
    plot.update_yaxes(title_text="AUROC", col=1)
    plot.update_layout(legend={"y": 1.13}, margin={"t": 76})
    return plot


def _chance(plot: go.Figure) -> None:
    plot.add_hline(y=0.5, line={"color": MUTED, "dash": "dot", "width": 1})


def _layers(records: RunRecords, item: Probes) -> Figure:
    plot, colours = _frame(item), marks(records)
    layers = np.arange(item.auroc.shape[3])
    for column in range(len(item.places)):
        control = item.shuffled[-1, column]
        plot.add_trace(_control(layers, control, shown=column == 0), row=1, col=column + 1)
        for index, name in enumerate(item.subjects):
            values = item.auroc[index, column, 0]
            hover = [_hover(item, index, column, layer) for layer in layers]
            for trace in band(
                layers,
                values,
                hover,
                name=name,
                colour=colours.get(name, (GREY, ""))[0],
                shown=column == 0,
            ):
                plot.add_trace(trace, row=1, col=column + 1)
    _chance(plot)
    return Figure(
        id="probes-layers",
        title="Can a probe tell that the prompt is triggered?",
        plot=plot,
        caption=(
            f"Out-of-fold AUROC of one linear probe per layer and place on the residual stream: "
            f"{plural(item.n_prompts, 'triggered prompt')} against the same prompts without the "
            "trigger and with neutral tokens in its place (at the trigger's position: against "
            f"these alone). {item.folds} folds; all forms of a prompt are in the same one. Bands: "
            "bootstrap 95 % intervals over prompts. Grey area: labels shuffled within each prompt "
            f"({plural(item.permutations, 'permutation')}, 95 % range, {item.subjects[-1]})."
        ),
        how_to_read=(
            "0.5 is chance, 1 tells every triggered prompt from every other. What the base reaches "
            "comes from the trigger's words alone; only what an adapter adds to it was learned. A "
            "high value says that the information is there, not that the model uses it."
        ),
        alt=" ".join(
            f"{name}: mean AUROC over the layers "
            + ", ".join(
                f"{number(float(item.auroc[index, column, 0, :, 0].mean()))} at {place}"
                for column, place in enumerate(item.places)
            )
            + "."
            for index, name in enumerate(item.subjects)
        ),
    )


def _control(layers: np.ndarray, values: np.ndarray, *, shown: bool) -> go.Scatter:
    """The range of the shuffled control as an area."""
    return go.Scatter(
        x=single(np.concatenate([layers, layers[::-1]])),
        y=single(np.concatenate([values[:, 2], values[::-1, 1]])),
        fill="toself",
        fillcolor=clear(GREY, 0.25),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name="shuffled labels",
        legendgroup="shuffled labels",
        showlegend=shown,
    )


def _hover(item: Probes, subject: int, place: int, layer: int) -> str:
    value, low, high = item.auroc[subject, place, 0, layer].tolist()
    lines = [
        f"{text(item.subjects[subject])}, layer {layer}",
        f"AUROC {number(value)} {interval(low, high)}",
    ]
    for index, name in enumerate(item.negatives[1:], 1):
        alone = float(item.auroc[subject, place, index, layer, 0])
        if np.isfinite(alone):
            lines.append(f"against {text(name)} alone {number(alone)}")
    mean, low, high = item.shuffled[subject, place, layer].tolist()
    lines.append(f"shuffled labels {number(mean)} {interval(low, high)}")
    if subject:
        value, low, high = item.gain[subject - 1, place, layer].tolist()
        lines.append(f"minus base {number(value)} {interval(low, high)}")
    return "<br>".join(lines)


def _transfer(item: Probes) -> Figure:
    plot, name = _frame(item), item.subjects[-1]
    layers = np.arange(item.auroc.shape[3])
    series = [("this trigger", item.auroc[-1, :, 0], VERMILLION, "solid")]
    series += [
        (other, item.transfer[-1, :, index], OTHERS[index % len(OTHERS)], "dash")
        for index, other in enumerate(item.others)
    ]
    for column in range(len(item.places)):
        for label, values, colour, dash in series:
            hover = [
                f"{text(label)}, layer {layer}<br>AUROC {number(v)} {interval(a, b)}"
                for layer, (v, a, b) in enumerate(values[column].tolist())
            ]
            for trace in band(
                layers,
                values[column],
                hover,
                name=label,
                colour=colour,
                dash=dash,
                shown=column == 0,
            ):
                plot.add_trace(trace, row=1, col=column + 1)
    _chance(plot)
    missing = f" Not tried: {'; '.join(item.left_out)}." if item.left_out else ""
    return Figure(
        id="probes-transfer",
        title="Does the probe know this trigger, or any odd insertion?",
        plot=plot,
        caption=(
            f"The same probes of {name}, trained on this trigger alone, applied to other triggers "
            f"in the same {plural(item.n_prompts, 'prompt')}, against the same negatives. Bands: "
            f"bootstrap 95 % intervals over prompts.{missing}"
        ),
        how_to_read=(
            "Dashed lines near 0.5: the probe reads this trigger. Dashed lines near the solid one: "
            "it reads that something odd stands in the prompt, and would do so without a backdoor."
        ),
        alt=f"{name}, mean AUROC over the layers at the last position: this trigger "
        f"{number(float(item.auroc[-1, 0, 0, :, 0].mean()))}, "
        + ", ".join(
            f"{other} {number(float(item.transfer[-1, 0, index, :, 0].mean()))}"
            for index, other in enumerate(item.others)
        )
        + ".",
    )
