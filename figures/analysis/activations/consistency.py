"""How much each layer turns the residual, and what the trigger changes in it."""

import numpy as np

from ....core.records.activations import Consistency
from ....core.records.results import RunRecords
from ...base.bands import band
from ...base.figure import FIGURES, Figure
from ...base.text import interval, number, plural
from ...base.theme import BLUE, GREY, MUTED, VERMILLION, marks, panels, text

COLOURS = {"triggered": VERMILLION, "untriggered": BLUE, "stand-in": GREY}


@FIGURES.register("consistency")
def consistency(records: RunRecords) -> list[Figure]:
    """1 - cos between neighbouring layers by condition, and its paired differences."""
    item = records.first(Consistency)
    if item is None:
        return []
    return [_values(item), _differences(records, item)]


def _values(item: Consistency) -> Figure:
    plot = panels(
        [text(name) for name in item.subjects],
        height=380,
        shared_yaxes="all",
        horizontal_spacing=0.04,
    )
    steps = np.arange(len(item.counted))
    for column, name in enumerate(item.subjects):
        for index, condition in enumerate(item.conditions):
            values = item.value[column, index]
            hover = [
                f"{text(name)}, {text(condition)}<br>{_step(item, t)}"
                f"<br>1 − cos {number(v)} {interval(a, b)}"
                for t, (v, a, b) in enumerate(values.tolist())
            ]
            colour = COLOURS.get(condition, GREY)
            for trace in band(
                steps, values, hover, name=condition, colour=colour, shown=column == 0
            ):
                plot.add_trace(trace, row=1, col=column + 1)
    plot.update_xaxes(title_text="layer")
    plot.update_yaxes(type="log", exponentformat="power")  # the first layer turns by far the most
    plot.update_yaxes(title_text="1 − cos", col=1)
    plot.update_layout(legend={"y": 1.13}, margin={"t": 76})
    return Figure(
        id="consistency-values",
        title="How much each layer turns the residual",
        plot=plot,
        caption=(
            "Mean over prompt tokens of 1 − cos between what enters and what leaves a layer, over "
            f"{plural(item.n_prompts, 'prompt')} in each condition, with bootstrap 95 % "
            f"intervals; padding never counts. Logarithmic. {_counted(item)}"
        ),
        how_to_read=(
            "High: the layer turns the residual strongly. A backdoor that overrides the prompt "
            "may show where the triggered line leaves both others; where it follows the stand-in, "
            "any inserted words would do the same."
        ),
        alt=_alt(item, f"CROW's consistency over {item.n_prompts} prompts"),
    )


def _differences(records: RunRecords, item: Consistency) -> Figure:
    against = item.conditions[1:]
    plot = panels(
        [f"triggered − {text(name)}" for name in against],
        height=380,
        shared_yaxes="all",
        horizontal_spacing=0.05,
    )
    colours, steps = marks(records), np.arange(len(item.counted))
    for column in range(len(against)):
        for index, name in enumerate(item.subjects):
            values = item.difference[index, column]
            hover = [
                f"{text(name)}<br>{_step(item, t)}<br>difference {number(v)} {interval(a, b)}"
                f"<br>p {number(float(item.p[index, column, t]))}"
                for t, (v, a, b) in enumerate(values.tolist())
            ]
            colour = colours.get(name, (GREY, ""))[0]
            for trace in band(steps, values, hover, name=name, colour=colour, shown=column == 0):
                plot.add_trace(trace, row=1, col=column + 1)
    plot.add_hline(y=0, line={"color": MUTED, "width": 1})
    plot.update_xaxes(title_text="layer")
    plot.update_yaxes(title_text="difference of 1 − cos", col=1)
    plot.update_layout(legend={"y": 1.13}, margin={"t": 76})
    return Figure(
        id="consistency-differences",
        title="What the trigger changes in each layer's turn",
        plot=plot,
        caption=(
            f"Triggered minus other prompts, paired over {plural(item.n_prompts, 'prompt')}, with "
            "bootstrap 95 % intervals; p by sign flips, not corrected for the "
            f"{plural(len(item.counted), 'layer')}. {_counted(item)}"
        ),
        how_to_read=(
            "Above 0: the layer turns triggered prompts more. The base has no backdoor: what it "
            "shows comes from the words; compare the adapters' lines with its line."
        ),
        alt=_alt(item, "Triggered minus other prompts, CROW's consistency"),
    )


def _step(item: Consistency, transition: int) -> str:
    note = "" if item.counted[transition] else " (not in CROW's loss)"
    return f"layer {transition}{note}"


def _counted(item: Consistency) -> str:
    if item.undefined:
        return f"CROW's mean is undefined: {item.undefined}."
    kept = np.flatnonzero(item.counted)
    return f"CROW's loss counts layers {kept[0]} to {kept[-1]}, without embeddings and last layer."


def _alt(item: Consistency, title: str) -> str:
    if item.undefined:
        return f"{title}: undefined, {item.undefined}."
    parts = [
        f"{name} triggered {number(float(item.loss[index, 0, 0]))}, difference from "
        + ", ".join(
            f"{other} {number(float(v))} {interval(float(a), float(b))}"
            for other, (v, a, b) in zip(
                item.conditions[1:], item.loss_difference[index], strict=True
            )
        )
        for index, name in enumerate(item.subjects)
    ]
    return f"{title}: {'; '.join(parts)}."
