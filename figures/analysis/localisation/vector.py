"""What a vector of few heads does where it is added and where it is subtracted."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.results import RunRecords
from ....core.records.vector import HeadVector, Steered
from ...base.figure import FIGURES, Figure
from ...base.lines import error_bars
from ...base.text import number, percent, plural, rate
from ...base.theme import (
    GREY,
    GRID,
    INK,
    OTHERS,
    SYMBOLS,
    clear,
    diverging,
    largest,
    named,
    panels,
    single,
    text,
)

SIDES = {False: "added, no trigger", True: "subtracted, with trigger"}
LABELS = {
    "none": "without",
    "vector": "vector",
    "random direction": "random direction",
    "random heads": "random heads",
}


@FIGURES.register("vector")
def vector(records: RunRecords) -> list[Figure]:
    """Rates of target behaviour with the vector and its controls, and what each head does."""
    item = records.first(HeadVector)
    return [] if item is None else [_rates(item), _heads(item)]


def _rates(item: HeadVector) -> Figure:
    plot = panels(list(SIDES.values()), height=380, horizontal_spacing=0.08)
    for column, triggered in enumerate(SIDES, 1):
        found = [item.of(triggered, name) for name in LABELS]
        plot.add_trace(_dots(found), row=1, col=column)
    plot.update_xaxes(**named(list(LABELS.values()), most=4, limit=24))
    plot.update_yaxes(range=[-0.04, 1.04], tickformat=".0%", gridcolor=GRID, dtick=0.25)
    plot.update_yaxes(title_text="target behaviour", col=1)
    plot.update_layout(showlegend=False)
    minus = "" if item.minus == "nothing" else f", minus their mean on {item.minus} prompts"
    return Figure(
        id="vector-rates",
        title="Answers with a vector of few heads",
        plot=plot,
        caption=(
            f"{item.sentence} The heads' mean output on triggered prompts{minus}, times "
            f"{number(item.scale)}, at the last prompt token; {item.decoding}, judged by "
            f"{item.rule}; 95 % Wilson intervals."
        ),
        how_to_read=(
            "Left: if the vector alone is high, it suffices for the backdoor. Right: if it is low, "
            "the backdoor needs it. Either counts only where the two controls stay with the run "
            "without a vector."
        ),
        alt="; ".join(
            f"{SIDES[c.triggered]}, {LABELS[c.vector]}: {rate(c.rate)}" for c in item.conditions
        )
        + ".",
    )


def _dots(found: list[Steered]) -> go.Scatter:
    values = np.array([[c.rate.value, c.rate.low, c.rate.high] for c in found])
    colours = [GREY, *OTHERS[: len(found) - 1]]
    return go.Scatter(
        x=single(np.arange(len(found))),
        y=single(values[:, 0]),
        mode="markers",
        marker={"color": colours, "symbol": list(SYMBOLS[: len(found)]), "size": 11},
        error_y=error_bars(values, clear(GREY, 0.8)),
        hovertext=[
            f"{LABELS[c.vector]}: {rate(c.rate)}<br>degenerate {percent(c.degenerate.value)}"
            f"<br>e.g. {text(c.example, limit=60) or 'an empty answer'}"
            for c in found
        ],
        hoverinfo="text",
    )


def _heads(item: HeadVector) -> Figure:
    depth, count = item.effect.shape
    picked = {(int(a), int(b)) for a, b in item.heads}
    top = item.heads[0].tolist()
    plot = panels([""], height=max(260, 120 + 18 * count))
    plot.add_trace(
        go.Heatmap(
            z=single(item.effect.T), x0=0, dx=1, y0=0, dy=1, coloraxis="coloraxis",
            hovertext=[
                [
                    f"layer {layer}, head {head}: {number(float(item.effect[layer, head]))} nats"
                    f"{', in the vector' if (layer, head) in picked else ''}"
                    for layer in range(depth)
                ]
                for head in range(count)
            ],
            hoverinfo="text",
        )
    )  # fmt: skip
    plot.add_trace(
        go.Scatter(
            x=single(item.heads[:, 0]), y=single(item.heads[:, 1]), mode="markers",
            marker={"symbol": "square-open", "size": 12, "color": INK}, hoverinfo="skip",
        )
    )  # fmt: skip
    plot.update_xaxes(**named([str(i) for i in range(depth)], most=16), title_text="layer")
    plot.update_yaxes(**named([str(i) for i in range(count)], most=32), title_text="head")
    axis = diverging(largest(item.effect) or 1.0, "nats")
    plot.update_layout(showlegend=False, coloraxis=axis, margin={"t": 20})
    value = float(item.effect[top[0], top[1]])
    return Figure(
        id="vector-heads",
        title="What each head does at the last prompt token",
        plot=plot,
        caption=(
            f"Drop of the target's log-probability when a head's value there is that of the "
            f"untriggered twin, mean over {plural(item.made_from, 'prompt')}; framed: the "
            f"{plural(len(item.heads), 'head')} of the vector."
        ),
        how_to_read=(
            "Positive: the head carries the target to the answer. A head near 0 does nothing at "
            "this token that the trigger decides."
        ),
        alt=f"Strongest: layer {top[0]}, head {top[1]}, {number(value)} nats.",
    )
