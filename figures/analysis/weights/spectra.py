"""The size of each adapter, module by module: norms and singular values."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ....core.records.results import RunRecords
from ....core.records.spectra import Spectra
from ...base.figure import FIGURES, Figure
from ...base.grid import Layout, add_map, height, kind_of, layout, ordered, root_sum_of_squares
from ...base.text import number, percent
from ...base.theme import GREY, clear, largest, magnitude, marks, named, panels, single, text


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
        _layers(found, colours),
    ]


def _layers(found: list[Spectra], colours: dict[str, tuple[str, str]]) -> Figure:
    """Whole layers: size relative to the base, effective rank, directions for 90 %."""
    titles = ["‖dW‖ / ‖W‖", "effective rank", "directions for 90 % of the energy"]
    plot = panels(titles, height=320, horizontal_spacing=0.07)
    for item in found:
        part, (colour, symbol) = item.by_layer, colours.get(item.adapter, (GREY, "circle"))
        labels = ["outside" if layer < 0 else str(int(layer)) for layer in part.layers]
        values = (part.relative_norm, part.effective_rank, part.energy[:, 1].astype(float))
        for column, (name, y) in enumerate(zip(titles, values, strict=True), 1):
            plot.add_trace(
                go.Scatter(
                    x=list(range(len(labels))),
                    y=single(y),
                    mode="lines+markers",
                    name=text(item.adapter),
                    legendgroup=item.adapter,
                    showlegend=column == 1,
                    line={"color": colour, "width": 2},
                    marker={"color": colour, "symbol": symbol, "size": 7},
                    hovertext=[
                        f"{text(item.adapter)}, layer {label}<br>{name}: {number(float(v))}"
                        f"<br>{percent(float(share))} of the adapter's squared norm"
                        for label, v, share in zip(labels, y, part.share, strict=True)
                    ],
                    hoverinfo="text",
                ),
                row=1,
                col=column,
            )
            plot.update_xaxes(**named(labels, most=16), row=1, col=column)
    plot.update_xaxes(title_text="layer")
    plot.update_yaxes(rangemode="tozero")
    plot.update_layout(margin={"t": 84}, legend={"y": 1.18})
    return Figure(
        id="spectra-layers",
        title="The change of each layer",
        plot=plot,
        caption=(
            "Of all singular values of a layer's modules together, which are those of its change "
            "as one block-diagonal matrix. Left: its norm over that of the adapted base weights."
        ),
        how_to_read=(
            "A low effective rank, or few directions for 90 % of the squared norm: the layer's "
            "change is concentrated. Like all spectra this is no verdict by itself."
        ),
        alt="; ".join(_layer_alt(item) for item in found) + ".",
    )


def _layer_alt(item: Spectra) -> str:
    part = item.by_layer
    if not np.isfinite(part.share).any():
        return f"{item.adapter}: no change"
    best = int(np.nanargmax(part.share))
    return (
        f"{item.adapter}: layer {int(part.layers[best])} holds {percent(float(part.share[best]))} "
        f"of the squared norm, with effective rank {number(float(part.effective_rank[best]))}"
    )


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
            "hovering shows the largest singular value, the ranks and the size relative to W."
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
    share = place.fill(item.share, np.sum)
    relative = place.fill(item.relative_norm, np.max)
    return [
        [
            f"{name}<br>‖dW‖ {number(float(z[r, c]))}, largest σ {number(float(top[r, c]))}"
            f"<br>effective rank {number(float(effective[r, c]))}, "
            f"stable rank {number(float(stable[r, c]))}"
            f"<br>{percent(float(share[r, c]))} of the squared norm, "
            f"‖dW‖ / ‖W‖ {number(float(relative[r, c]))}"
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
