"""Strong singular vectors of the changed weights that are unlike all of the base's."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.results import RunRecords
from ....core.records.spectra import Intruders
from ...base.figure import FIGURES, Figure
from ...base.grid import add_map, height, layout
from ...base.text import number, plural
from ...base.theme import GREY, MUTED, clear, counts, largest, marks, panels, single, text

STEPS = np.linspace(0, 1, 101)
"""Thresholds along the curve."""


@FIGURES.register("intruders")
def intruders(records: RunRecords) -> list[Figure]:
    """Intruders by layer and kind, and how their number depends on the threshold."""
    found = [item for item in records.of(Intruders) if item.modules]
    return [_map(found), _curve(found, marks(records))] if found else []


def _map(found: list[Intruders]) -> Figure:
    place = [layout(item.modules, item.layers) for item in found]
    rows = max(len(p.layers) for p in place)
    plot = panels([text(i.adapter) for i in found], height=height(rows), horizontal_spacing=0.08)
    top = 0.0
    for column, (item, where) in enumerate(zip(found, place, strict=True), 1):
        z = where.fill(item.intruders.astype(float), np.sum)
        open_ = where.fill(item.undecided.astype(float), np.sum)
        top = max(top, largest(z))
        lowest = where.fill(_lowest(item), np.min)
        hover = [
            [
                f"{name}<br>{number(float(z[r, c]))} intruders, "
                f"{number(float(open_[r, c]))} undecided"
                f"<br>smallest largest cosine {number(float(lowest[r, c]))}"
                for c, name in enumerate(line)
            ]
            for r, line in enumerate(where.names())
        ]
        add_map(plot, where, z, hover, column=column, axis="coloraxis")
    plot.update_yaxes(title_text="layer", col=1)
    plot.update_layout(coloraxis=counts(top, "intruders"))
    first = found[0]
    return Figure(
        id="intruders-map",
        title="Intruder dimensions",
        plot=plot,
        caption=(
            f"Of the {first.k} strongest left singular vectors of each W + dW, those with no "
            f"cosine of {number(first.threshold)} or more with any of W. "
            + " ".join(_told(item) for item in found)
        ),
        how_to_read=(
            "Orange: training put strong directions there that the base did not have. Benign "
            "low-rank training does so too (Shuttleworth et al. 2024): compare poisoned with "
            "clean, cell by cell, before making anything of it."
        ),
        alt="; ".join(f"{i.adapter}: {int(i.intruders.sum())} intruders" for i in found) + ".",
    )


def _lowest(item: Intruders) -> np.ndarray:
    return np.where(np.isnan(item.cosine), np.inf, item.cosine).min(1)


def _told(item: Intruders) -> str:
    bounded = sum(method == "lanczos" for method in item.methods)
    return (
        f"{item.adapter.capitalize()}: {plural(int(item.intruders.sum()), 'intruder')} in "
        f"{plural(int((item.intruders > 0).sum()), 'module')} of {len(item.modules):,}, "
        f"{int(item.undecided.sum())} undecided, "
        f"{bounded} weights by bounds, largest residual "
        f"{number(float(item.residual.max()), digits=1)}."
    )


def _curve(found: list[Intruders], colours: dict[str, tuple[str, str]]) -> Figure:
    plot = panels([""], height=340)
    for item in found:
        colour = colours.get(item.adapter, (GREY, ""))[0]
        # Sure: every cosine is below the threshold; possible: the lower bound is.
        sure, possible = (
            np.array([np.sum(values < step) for step in STEPS])
            for values in (item.cosine_upper, item.cosine)
        )
        shown = text(item.adapter)
        if (possible > sure).any():
            plot.add_trace(
                go.Scatter(
                    x=single(np.concatenate([STEPS, STEPS[::-1]])),
                    y=single(np.concatenate([possible, sure[::-1]])),
                    fill="toself",
                    mode="lines",
                    fillcolor=clear(colour, 0.18),
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        plot.add_trace(
            go.Scatter(
                x=single(STEPS),
                y=single(sure),
                mode="lines",
                name=shown,
                line={"color": colour, "width": 2},
                hovertext=[
                    f"{shown}, threshold {number(float(step))}<br>{int(count)} intruders"
                    for step, count in zip(STEPS, sure, strict=True)
                ],
                hoverinfo="text",
            )
        )
    plot.add_vline(x=found[0].threshold, line={"color": MUTED, "dash": "dot", "width": 1})
    plot.update_xaxes(title_text="threshold of the cosine")
    plot.update_yaxes(title_text="vectors below it", rangemode="tozero")
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
            "The threshold is a convention; this shows what hangs on it. Where the lines of "
            "poisoned and clean lie on each other, the number says nothing about the poison."
        ),
        alt="; ".join(
            f"{item.adapter}: {int((item.cosine_upper < 0.3).sum())} below 0.3, "
            f"{int((item.cosine_upper < 0.5).sum())} below 0.5, "
            f"{int((item.cosine_upper < 0.7).sum())} below 0.7"
            for item in found
        )
        + ".",
    )
