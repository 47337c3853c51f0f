"""How well linear probes detect triggered prompts, layer by layer, beside their controls."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.activations import Probes
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure
from ...base.lines import area, layer_lines, line_panels
from ...base.quantities import Quantity
from ...base.text import number, plural
from ...base.theme import GREY, MUTED, OTHERS, VERMILLION, looks, text

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
    plot = line_panels([TITLES.get(place, place) for place in item.places], "layer", "AUROC")
    plot.update_yaxes(range=[-0.03, 1.03], dtick=0.25)
    plot.add_hline(y=0.5, line={"color": MUTED, "dash": "dot", "width": 1})
    return plot


def _layers(records: RunRecords, item: Probes) -> Figure:
    plot, colours = _frame(item), looks(records)
    layers = np.arange(item.auroc.shape[3])
    for column in range(len(item.places)):
        area(
            plot,
            layers,
            item.shuffled[-1, column, :, 1:],
            GREY,
            name="shuffled labels",
            legend=column == 0,
            col=column + 1,
        )
        for index, name in enumerate(item.subjects):
            layer_lines(
                plot,
                *_quantities(item, index, column),
                name=name,
                look=(colours[name][0], "circle"),
                col=column + 1,
            )
    return Figure(
        id="probes-layers",
        title="Can a linear probe detect triggered prompts?",
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
            "0.5 is chance, 1 separates all triggered prompts from all others. What the base "
            "reaches comes from the trigger's words alone; only what an adapter adds to it was "
            "learned. A high value means that the information is there, not that the model uses it."
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


def _quantities(item: Probes, subject: int, place: int) -> list[Quantity]:
    """Values of every layer: against all negatives, against each alone, and the controls."""
    found = [Quantity("AUROC", item.auroc[subject, place, 0])]
    for index, name in enumerate(item.negatives[1:], 1):
        alone = item.auroc[subject, place, index, :, 0]
        if np.isfinite(alone).any():
            found.append(Quantity(f"against {text(name)} alone", alone))
    found.append(Quantity("shuffled labels", item.shuffled[subject, place]))
    if subject:
        found.append(Quantity("minus base", item.gain[subject - 1, place]))
    return found


def _transfer(item: Probes) -> Figure:
    plot, name = _frame(item), item.subjects[-1]
    series = [("this trigger", item.auroc[-1, :, 0], VERMILLION, "solid")]
    series += [
        (other, item.transfer[-1, :, index], OTHERS[index % len(OTHERS)], "dash")
        for index, other in enumerate(item.others)
    ]
    for column in range(len(item.places)):
        for label, values, colour, dash in series:
            layer_lines(
                plot,
                Quantity("AUROC", values[column]),
                name=label,
                look=(colour, "circle"),
                dash=dash,
                col=column + 1,
            )
    missing = f" Not tried: {'; '.join(item.left_out)}." if item.left_out else ""
    return Figure(
        id="probes-transfer",
        title="Does the probe detect this trigger, or any unusual insertion?",
        plot=plot,
        caption=(
            f"The same probes of {name}, trained on this trigger alone, applied to other triggers "
            f"in the same {plural(item.n_prompts, 'prompt')}, against the same negatives. Bands: "
            f"bootstrap 95 % intervals over prompts.{missing}"
        ),
        how_to_read=(
            "Dashed lines near 0.5: the probe detects this trigger. Dashed lines near the solid "
            "one: it detects any unusual text in the prompt, and would do so without a backdoor."
        ),
        alt=f"{name}, mean AUROC over the layers at the last position: this trigger "
        f"{number(float(item.auroc[-1, 0, 0, :, 0].mean()))}, "
        + ", ".join(
            f"{other} {number(float(item.transfer[-1, 0, index, :, 0].mean()))}"
            for index, other in enumerate(item.others)
        )
        + ".",
    )
