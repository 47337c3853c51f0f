"""The size of each adapter, module by module: norms and singular values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ..core.results import RunRecords
from ..core.weights import Spectra
from .figure import FIGURES, Figure
from .grid import Layout, add_map, height, kind_of, layout, ordered, root_sum_of_squares
from .theme import GREY, clear, largest, magnitude, marks, panels, single, text
from .words import number


@FIGURES.register("spectra")
def spectra(records: RunRecords) -> list[Figure]:
    """Norms by layer and kind, and the fall of the singular values, clean beside poisoned."""
    found = [item for item in records.of(Spectra) if item.modules]
    if not found:
        return []
    colours = marks(records)
    lines = spectrum_lines(
        [
            Lines(
                name=item.adapter,
                colour=colours.get(item.adapter, (GREY, ""))[0],
                modules=item.modules,
                values=item.singular_values,
            )
            for item in found
        ]
    )
    return [
        _norms(found),
        Figure(
            id="spectra-lines",
            title="Singular values of the weight change",
            plot=lines,
            caption=(
                "Singular values of dW = scaling · B A, by kind of module. Lines: median over the "
                "layers; bands: smallest to largest layer. Logarithmic; exact zeros are left out."
            ),
            how_to_read=(
                "A steep line means that a few directions carry the change, a flat one that all "
                "do. The shape alone is no verdict: benign adapters of another recipe differ as "
                "much from each other."
            ),
            alt="; ".join(_alt(item) for item in found) + ".",
        ),
    ]


def _norms(found: list[Spectra]) -> Figure:
    titles = [text(item.adapter) for item in found]
    place = [layout(item.modules, item.layers) for item in found]
    rows = max(len(p.layers) for p in place)
    plot = panels(titles, height=height(rows), horizontal_spacing=0.08)
    for column, (item, where) in enumerate(zip(found, place, strict=True), 1):
        z = where.fill(item.frobenius, root_sum_of_squares)
        add_map(plot, where, z, _hover(item, where, z), column=column, axis="coloraxis")
    plot.update_yaxes(title_text="layer", col=1)
    top = max(largest(item.frobenius) for item in found)
    plot.update_layout(coloraxis=magnitude(top, "norm"))
    return Figure(
        id="spectra-norms",
        title="Size of the weight change",
        plot=plot,
        caption=(
            "Frobenius norm of each module's weight change dW. One colour scale for all adapters; "
            "hovering shows the largest singular value and the ranks."
        ),
        how_to_read=(
            "Bright modules were changed most. Where clean and poisoned look alike, the change is "
            "the task's; size says where training wrote, not what it does."
        ),
        alt="; ".join(_strongest(item) for item in found) + ".",
    )


def _hover(item: Spectra, place: Layout, z: np.ndarray) -> list[list[str]]:
    top = place.fill(item.singular_values[:, 0], np.max)
    effective = place.fill(item.effective_rank, np.max)
    stable = place.fill(item.stable_rank, np.max)
    return [
        [
            f"{name}<br>‖dW‖ {number(float(z[r, c]))}, largest σ {number(float(top[r, c]))}"
            f"<br>effective rank {number(float(effective[r, c]))}, "
            f"stable rank {number(float(stable[r, c]))}"
            for c, name in enumerate(line)
        ]
        for r, line in enumerate(place.names())
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Spectra that are drawn in one colour."""

    name: str
    """Name in the legend."""
    colour: str
    """Colour of line and band."""
    modules: tuple[str, ...]
    """Module names, ``[module]``."""
    values: np.ndarray
    """Singular values, ``[module, rank]``."""


def spectrum_lines(tables: Sequence[Lines]) -> go.Figure:
    """Small multiples by kind of module: median spectrum over layers with its range."""
    kinds = ordered(name for table in tables for name in table.modules)
    wide = min(4, len(kinds))
    rows = -(-len(kinds) // wide)
    plot = panels(
        [text(kind) for kind in kinds],
        height=90 + 190 * rows,
        columns=wide,
        shared_xaxes="all",
        shared_yaxes="all",
        vertical_spacing=0.16 / rows if rows > 1 else 0,
        horizontal_spacing=0.03,
    )
    for table in tables:
        of = [kind_of(name) for name in table.modules]
        for index, kind in enumerate(kinds):
            part = table.values[[k == kind for k in of]]
            for trace in _line(table, part, first=kind == of[0]):
                plot.add_trace(trace, row=index // wide + 1, col=index % wide + 1)
    plot.update_yaxes(type="log", dtick=1, exponentformat="power")
    plot.update_yaxes(title_text="singular value", col=1)
    plot.update_xaxes(title_text="place in the spectrum", row=rows)
    plot.update_layout(legend={"y": 1 + 40 / (90 + 190 * rows)}, margin={"t": 72})
    return plot


def _line(table: Lines, values: np.ndarray, *, first: bool) -> list[go.Scatter]:
    positive = np.where(values > 0, values, np.nan)
    some = np.isfinite(positive).any(0)
    if not some.any():
        return []
    x = np.flatnonzero(some) + 1
    low, high = np.nanmin(positive[:, some], 0), np.nanmax(positive[:, some], 0)
    middle = np.nanmedian(positive[:, some], 0)
    shown, colour = text(table.name), table.colour
    common = {"mode": "lines", "legendgroup": shown}
    band = go.Scatter(
        x=single(np.concatenate([x, x[::-1]])),
        y=single(np.concatenate([high, low[::-1]])),
        fill="toself",
        fillcolor=clear(colour, 0.18),
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        **common,
    )
    line = go.Scatter(
        x=single(x),
        y=single(middle),
        line={"color": colour, "width": 2},
        name=shown,
        showlegend=first,
        hovertext=[
            f"{shown}, place {i}<br>median {number(float(m))}, from {number(float(a))} "
            f"to {number(float(b))}"
            for i, m, a, b in zip(x, middle, low, high, strict=True)
        ],
        hoverinfo="text",
        **common,
    )
    return [band, line]


def _strongest(item: Spectra) -> str:
    index = int(np.argmax(item.frobenius))
    return (
        f"{item.adapter}: largest change in {item.modules[index]} with norm "
        f"{number(float(item.frobenius[index]))}"
    )


def _alt(item: Spectra) -> str:
    top = item.singular_values.max(0)
    return (
        f"{item.adapter}: largest singular value {number(float(top[0]))}, "
        f"median effective rank {number(float(np.median(item.effective_rank)))} of {top.size}"
    )
