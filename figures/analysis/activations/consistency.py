"""How much each layer turns the residual stream, and what the trigger changes in that."""

import numpy as np

from ....core.records.activations import Consistency
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure
from ...base.lines import layer_lines, line_panels
from ...base.quantities import Quantity, written
from ...base.text import number, plural
from ...base.theme import BLUE, GREY, MUTED, VERMILLION, looks, text

COLOURS = {"triggered": VERMILLION, "untriggered": BLUE, "stand-in": GREY}


@FIGURES.register("consistency")
def consistency(records: RunRecords) -> list[Figure]:
    """1 - cos between neighbouring layers by condition, and its paired differences."""
    item = records.first(Consistency)
    if item is None:
        return []
    return [_values(item), _differences(records, item)]


def _values(item: Consistency) -> Figure:
    plot = line_panels(item.subjects, "layer", "1 − cos")
    for column in range(len(item.subjects)):
        for index, condition in enumerate(item.conditions):
            layer_lines(
                plot,
                Quantity("1 − cos", item.value[column, index]),
                places=[f"{text(item.subjects[column])}, {place}" for place in _places(item)],
                name=condition,
                look=(COLOURS.get(condition, GREY), "circle"),
                col=column + 1,
            )
    plot.update_yaxes(type="log", exponentformat="power")  # the first layer turns by far the most
    return Figure(
        id="consistency-values",
        title="How much each layer turns the residual stream",
        plot=plot,
        caption=(
            "Mean over prompt tokens of 1 − cos between what enters and what leaves a layer, over "
            f"{plural(item.n_prompts, 'prompt')} in each condition, with bootstrap 95 % "
            f"intervals; padding never counts. Logarithmic. {_counted(item)}"
        ),
        how_to_read=(
            "High: the layer turns the residual stream strongly. A backdoor that overrides the "
            "prompt may show where the triggered line leaves both others. Where it follows the "
            "stand-in (neutral words in the trigger's place), any inserted words would do the same."
        ),
        alt=_alt(item, f"CROW's consistency over {item.n_prompts} prompts"),
    )


def _differences(records: RunRecords, item: Consistency) -> Figure:
    against = item.conditions[1:]
    plot = line_panels(
        [f"triggered − {name}" for name in against], "layer", "difference of 1 − cos"
    )
    colours = looks(records)
    for column in range(len(against)):
        for index, name in enumerate(item.subjects):
            layer_lines(
                plot,
                Quantity("difference", item.difference[index, column]),
                Quantity("p", item.p[index, column]),
                places=_places(item),
                name=name,
                look=(colours[name][0], "circle"),
                col=column + 1,
            )
    plot.add_hline(y=0, line={"color": MUTED, "width": 1})
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
            "shows comes from the inserted words; compare the adapters' lines with its line."
        ),
        alt=_alt(item, "Triggered minus other prompts, CROW's consistency"),
    )


def _places(item: Consistency) -> list[str]:
    notes = ["" if counted else " (not in CROW's loss)" for counted in item.counted]
    return [f"layer {layer}{note}" for layer, note in enumerate(notes)]


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
            f"{other} {written(values)}"
            for other, values in zip(item.conditions[1:], item.loss_difference[index], strict=True)
        )
        for index, name in enumerate(item.subjects)
    ]
    return f"{title}: {'; '.join(parts)}."
