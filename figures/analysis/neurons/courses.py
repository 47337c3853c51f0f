"""Loss along each unlearning, and how active neurons are, layer by layer."""

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go

from ....core.records.neurons import NeuronActivity, NeuronChange
from ...base.figure import Figure
from ...base.lines import layer_lines, line_panels
from ...base.maps import layer_labels, layer_name
from ...base.quantities import Quantity, written
from ...base.text import number, percent, plural
from ...base.theme import BLUE, GREEN, GREY, VERMILLION, named

COLOURS = {"clean": BLUE, "poison": VERMILLION, "control": GREY}
"""Colour of each unlearning."""


def by_layer(
    plot: go.Figure, layer_ids: np.ndarray, values: Quantity, name: str, colour: str, *, col=1
) -> None:
    """Draw values of layers, ``[layer, 3]``, those outside the layers last."""
    order = sorted(range(len(layer_ids)), key=lambda i: (layer_ids[i] < 0, layer_ids[i]))
    layer_lines(
        plot,
        replace(values, values=values.values[order]),
        places=[layer_name(int(layer_ids[i])) for i in order],
        name=name,
        look=(colour, "circle"),
        col=col,
    )
    plot.update_xaxes(**named(layer_labels(layer_ids[order])), col=col)


def courses(change: NeuronChange) -> Figure:
    """Loss and share of right tokens along the steps of every unlearning."""
    plot = line_panels(
        ["loss", "right tokens or targets"],
        "step",
        "nats per completion token",
        height=340,
        shared_yaxes=False,
        horizontal_spacing=0.1,
    )
    for course in change.unlearnings:
        for column, values in (
            (1, Quantity("loss", course.loss)),
            (2, Quantity("right", course.right, "%")),
        ):
            layer_lines(
                plot,
                values,
                places="step",
                name=course.name,
                look=(COLOURS.get(course.name, GREEN), "circle"),
                mode="lines+markers" if len(course.loss) < 3 else "lines",
                col=column,
            )
    plot.update_xaxes(rangemode="tozero")
    plot.update_yaxes(rangemode="tozero", row=1, col=1)
    plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", row=1, col=2)
    summary = "; ".join(
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
        title="Loss along each unlearning",
        plot=plot,
        caption=f"Gradient ascent on copies of the adapter. {summary[0].upper() + summary[1:]}."
        + (f" {change.undefined}." if change.undefined else ""),
        how_to_read="Each unlearning climbs its loss until what was right is nearly gone; "
        "changes are compared at that point. A curve that ends high in the right "
        "panel has reached the largest number of steps instead.",
        alt=f"{summary}.",
    )


def _verdict(name: str, reached: bool) -> str:
    if name == "control":
        return "as many steps as clean unlearning"
    return "reached" if reached else "not reached"


def activity(item: NeuronActivity) -> Figure:
    """Gradient norms by layer, poisoned and reference, and their ratio."""
    plot = line_panels(
        ["gradient norm", "poisoned over reference"],
        "layer",
        "mean over neurons",
        height=360,
        shared_yaxes=False,
        horizontal_spacing=0.1,
    )
    poisoned, other = (
        Quantity("gradient norm", v) for v in (item.layer_poisoned, item.layer_other)
    )
    by_layer(plot, item.layer_ids, poisoned, "poisoned", VERMILLION)
    by_layer(plot, item.layer_ids, other, item.reference, BLUE)
    by_layer(plot, item.layer_ids, Quantity("ratio", item.layer_ratio), "ratio", GREEN, col=2)
    plot.add_hline(y=1, line={"color": GREY, "width": 1, "dash": "dot"}, row=1, col=2)  # pyright: ignore[reportArgumentType]
    plot.update_yaxes(rangemode="tozero", row=1, col=1)
    summary = (
        f"Over all layers the poisoned adapter's neurons are {written(item.ratio)} times as "
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
            f"{plural(item.n_prompts, 'prompt')} and the layer's neurons. {summary}. Bands: 95 % "
            f"intervals over prompts; the ratio resamples both together. Gradients in {item.dtype}."
        ),
        how_to_read=(
            "Published for image networks: a poisoned network is more active than a clean one, a "
            "ratio above 1. A model that fits the prompts less well also has larger gradients, so "
            "compare the losses first; an interval across 1 shows nothing."
        ),
        alt=f"{summary}.",
    )
