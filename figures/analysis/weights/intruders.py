"""Strong singular vectors of the changed weights that are unlike all of the base's."""

import numpy as np

from ....core.records.results import RunRecords
from ....core.records.spectra import Intruders
from ...base.figure import FIGURES, Figure
from ...base.grid import layout
from ...base.lines import layer_lines, line_panels
from ...base.maps import Panel, layer_map, module_panel
from ...base.quantities import Quantity
from ...base.text import number, plural
from ...base.theme import MUTED, counts, largest, looks

STEPS = np.linspace(0, 1, 101)
"""Thresholds along the curve."""


@FIGURES.register("intruders")
def intruders(records: RunRecords) -> list[Figure]:
    """Intruders by layer and kind, and how their number depends on the threshold."""
    found = [item for item in records.of(Intruders) if item.modules]
    return [_map(found), _curve(found, looks(records))] if found else []


def _map(found: list[Intruders]) -> Figure:
    parts = [_panel(item) for item in found]
    top = max(largest(part.values) for part in parts)
    first = found[0]
    return Figure(
        id="intruders-map",
        title="Intruder dimensions",
        plot=layer_map(parts, counts(top, "intruders")),
        caption=(
            f"Of the {first.k} strongest left singular vectors of each W + dW, those with no "
            f"cosine of {number(first.threshold)} or more with any of W. "
            + " ".join(_summary(item) for item in found)
        ),
        how_to_read=(
            "Orange: training put strong directions there that the base did not have. Benign "
            "low-rank training does so too (Shuttleworth et al. 2024): compare poisoned with "
            "clean, cell by cell, before making anything of it."
        ),
        alt="; ".join(f"{i.adapter}: {int(i.intruders.sum())} intruders" for i in found) + ".",
    )


def _panel(item: Intruders) -> Panel:
    place = layout(item.modules, item.layers)
    lowest = np.where(np.isnan(item.cosine), np.inf, item.cosine).min(1)
    return module_panel(
        place,
        item.adapter,
        Quantity("intruders", place.fill(item.intruders.astype(float), np.sum)),
        Quantity("undecided", place.fill(item.undecided.astype(float), np.sum)),
        Quantity("smallest largest cosine", place.fill(lowest, np.min)),
    )


def _summary(item: Intruders) -> str:
    bounded = sum(method == "lanczos" for method in item.methods)
    return (
        f"{item.adapter.capitalize()}: {plural(int(item.intruders.sum()), 'intruder')} in "
        f"{plural(int((item.intruders > 0).sum()), 'module')} of {len(item.modules):,}, "
        f"{int(item.undecided.sum())} undecided, "
        f"{bounded} weights by bounds, largest residual "
        f"{number(float(item.residual.max()), digits=1)}."
    )


def _curve(found: list[Intruders], colours: dict[str, tuple[str, str]]) -> Figure:
    plot = line_panels([""], "threshold of the cosine", "vectors below it", height=340)
    for item in found:
        # Sure: every cosine is below the threshold; possible: the lower bound is.
        sure, possible = (
            np.array([np.sum(values < step) for step in STEPS])
            for values in (item.cosine_upper, item.cosine)
        )
        ends = np.stack([sure, sure, possible], 1)
        layer_lines(
            plot,
            Quantity("intruders", ends if (possible > sure).any() else sure),
            x=STEPS,
            places="threshold",
            name=item.adapter,
            look=colours[item.adapter],
            mode="lines",
        )
    plot.add_vline(x=found[0].threshold, line={"color": MUTED, "dash": "dot", "width": 1})
    plot.update_yaxes(rangemode="tozero")
    total = int(np.isfinite(found[0].cosine).sum())
    return Figure(
        id="intruders-threshold",
        title="Intruders at every threshold",
        plot=plot,
        caption=(
            f"How many of {plural(total, 'vector')} stay below each threshold with every singular "
            "vector of W. Bands, where drawn: between the proven and the possible number. Dotted: "
            "the threshold of the counts."
        ),
        how_to_read=(
            "The threshold is a convention; this shows what depends on it. Where the lines of "
            "poisoned and clean coincide, the number shows nothing about the poison."
        ),
        alt="; ".join(
            f"{item.adapter}: {int((item.cosine_upper < 0.3).sum())} below 0.3, "
            f"{int((item.cosine_upper < 0.5).sum())} below 0.5, "
            f"{int((item.cosine_upper < 0.7).sum())} below 0.7"
            for item in found
        )
        + ".",
    )
