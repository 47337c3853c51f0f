"""The way of each unlearning, how active neurons are, and values of layers as lines."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ....core.records.neurons import NeuronActivity, NeuronChange
from ...base.bands import band
from ...base.figure import Figure
from ...base.text import interval, number, percent, plural
from ...base.theme import BLUE, GREEN, GREY, VERMILLION, named, panels, single, text

COLOURS = {"clean": BLUE, "poison": VERMILLION, "control": GREY}
"""Colour of each unlearning."""


def with_interval(values: np.ndarray) -> str:
    """A value with its interval in words."""
    return f"{number(float(values[0]))} {interval(float(values[1]), float(values[2]))}"


def order(layer_ids: np.ndarray) -> list[int]:
    """Places of the layers, those outside the layers last."""
    return sorted(range(len(layer_ids)), key=lambda i: (layer_ids[i] < 0, layer_ids[i]))


def layer_labels(layer_ids: np.ndarray) -> list[str]:
    """Their numbers as words, in that order."""
    return ["outside" if layer_ids[i] < 0 else str(layer_ids[i]) for i in order(layer_ids)]


def layer_lines(
    plot: go.Figure, values: np.ndarray, labels: Sequence[str], name: str, colour: str, *, col=1
) -> None:
    """Draw values of layers, ``[layer, 3]``, with their intervals into a panel."""
    hover = [
        f"{text(name)}<br>layer {label}: {with_interval(v)}"
        for label, v in zip(labels, values, strict=True)
    ]
    traces = band(np.arange(len(values)), values, hover, name=name, colour=colour)
    plot.add_traces(traces, rows=[1] * len(traces), cols=[col] * len(traces))


def courses(change: NeuronChange) -> Figure:
    """Loss and what was right along the steps of every unlearning."""
    plot = panels(["loss", "right tokens or targets"], height=340, horizontal_spacing=0.1)
    for course in change.unlearnings:
        for column, values in ((1, course.loss), (2, course.right)):
            plot.add_trace(
                go.Scatter(
                    x=single(np.arange(len(values))),
                    y=single(values),
                    mode="lines+markers" if len(values) < 3 else "lines",
                    line={"color": COLOURS.get(course.name, GREEN), "width": 2},
                    name=text(course.name),
                    legendgroup=text(course.name),
                    showlegend=column == 1,
                ),
                row=1,
                col=column,
            )
    plot.update_xaxes(title_text="step", rangemode="tozero")
    plot.update_yaxes(title_text="nats per completion token", rangemode="tozero", row=1, col=1)
    plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", row=1, col=2)
    plot.update_layout(legend={"y": 1.13}, margin={"t": 84})
    said = "; ".join(
        f"{u.name} ({u.about}): {plural(u.n_rows, 'prompt')}, "
        f"{plural(u.n_tokens, 'token')}, {plural(u.steps, 'step')} of at most {u.most}, loss "
        f"{number(float(u.loss[0]))} to {number(float(u.loss[-1]))}, right "
        f"{'targets' if u.whole else 'tokens'} "
        f"{percent(float(u.right[0]))} to {percent(float(u.right[-1]))}, the adapter moved by "
        f"{percent(u.moved)} of its norm; rule ({u.rule}) {_verdict(u.name, u.reached)}"
        for u in change.unlearnings
    )
    return Figure(
        id="neurons-unlearning",
        title="The way of each unlearning",
        plot=plot,
        caption=f"Gradient ascent on copies of the adapter. {said[0].upper() + said[1:]}."
        + (f" {change.undefined}." if change.undefined else ""),
        how_to_read="Each unlearning climbs its loss until what was right is nearly gone; "
        "changes are compared at that point. A curve that ends high on the right has met the "
        "ceiling of steps instead.",
        alt=f"{said}.",
    )


def _verdict(name: str, reached: bool) -> str:
    if name == "control":
        return "as many steps as clean unlearning"
    return "reached" if reached else "not reached"


def activity(item: NeuronActivity) -> Figure:
    """Gradient norms by layer, poisoned and reference, and their ratio."""
    places = order(item.layer_ids)
    labels = layer_labels(item.layer_ids)
    plot = panels(["gradient norm", "poisoned over reference"], height=360, horizontal_spacing=0.1)
    layer_lines(plot, item.layer_poisoned[places], labels, "poisoned", VERMILLION)
    layer_lines(plot, item.layer_other[places], labels, item.reference, BLUE)
    layer_lines(plot, item.layer_ratio[places], labels, "ratio", GREEN, col=2)
    plot.add_hline(y=1, line={"color": GREY, "width": 1, "dash": "dot"}, row=1, col=2)  # pyright: ignore[reportArgumentType]
    plot.update_xaxes(**named(labels), title_text="layer")
    plot.update_yaxes(title_text="mean over neurons", rangemode="tozero", row=1, col=1)
    plot.update_layout(legend={"y": 1.13}, margin={"t": 84})
    said = (
        f"Over all layers the poisoned adapter's neurons are {with_interval(item.ratio)} times as "
        f"active as those of the {item.reference}; {percent(item.more_active)} of "
        f"{plural(len(item.poisoned), 'neuron')} are more active; clean loss "
        f"{number(item.loss_poisoned)} against {number(item.loss_other)} nats per token"
    )
    return Figure(
        id="neurons-activity",
        title="How active the neurons are on clean prompts",
        plot=plot,
        caption=(
            "Norm of the clean loss's gradient in each neuron's incoming weights, mean over "
            f"{plural(item.n_prompts, 'prompt')} and the layer's neurons. {said}. Bands: 95 % "
            f"intervals over prompts; the ratio resamples both together. Gradients in {item.dtype}."
        ),
        how_to_read=(
            "Published for image networks: a poisoned network is more active than a clean one, a "
            "ratio above 1. A model that fits the prompts less well also has larger gradients, so "
            "compare the losses first; an interval across 1 shows nothing."
        ),
        alt=f"{said}.",
    )
