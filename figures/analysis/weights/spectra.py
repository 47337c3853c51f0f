"""The size of each adapter, module by module: norms and singular values."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ....core.records.results import RunRecords
from ....core.records.spectra import Spectra
from ...base.figure import FIGURES, Figure
from ...base.grid import kind_of, layout, ordered, root_sum_of_squares
from ...base.lines import layer_lines, line_panels
from ...base.maps import Panel, layer_labels, layer_map, layer_name, module_panel
from ...base.quantities import Quantity
from ...base.text import number, percent
from ...base.theme import largest, looks, magnitude, named, panels, text

Look = tuple[str, str]
"""Colour and marker symbol."""


@FIGURES.register("spectra")
def spectra(records: RunRecords) -> list[Figure]:
    """Norms by layer and kind, and the fall of the singular values, clean beside poisoned."""
    found = [item for item in records.of(Spectra) if item.modules]
    if not found:
        return []
    colours = looks(records)
    return [
        _norms(found),
        Figure(
            id="spectra-lines",
            title="Singular values of the weight change",
            plot=spectrum_lines(
                [(i.adapter, colours[i.adapter], i.modules, i.singular_values) for i in found]
            ),
            caption=(
                "Singular values of dW = scaling · B A, by kind of module. Lines: median over the "
                "layers; bands: smallest to largest layer. Logarithmic; exact zeros are left out."
            ),
            how_to_read=(
                "A steep line means that a few directions carry the change, a flat one that all "
                "do. The shape alone proves nothing: benign adapters of another recipe differ as "
                "much from each other."
            ),
            alt="; ".join(_alt(item) for item in found) + ".",
        ),
        _layers(found, colours),
    ]


def _layers(found: list[Spectra], colours: dict[str, Look]) -> Figure:
    """Whole layers: size relative to the base, effective rank, directions for 90 %."""
    titles = ["‖dW‖ / ‖W‖", "effective rank", "directions for 90 % of the energy"]
    plot = line_panels(titles, "layer", "", height=320, shared_yaxes=False, horizontal_spacing=0.07)
    for item in found:
        part = item.by_layer
        share = Quantity("share of the adapter's squared norm", part.share, "%")
        values = (part.relative_norm, part.effective_rank, part.energy[:, 1].astype(float))
        for column, (name, y) in enumerate(zip(titles, values, strict=True), 1):
            layer_lines(
                plot,
                Quantity(f"{name}:", y),
                share,
                places=[layer_name(int(layer)) for layer in part.layers],
                name=item.adapter,
                look=colours[item.adapter],
                col=column,
            )
            plot.update_xaxes(**named(layer_labels(part.layers), most=16), col=column)
    plot.update_yaxes(rangemode="tozero")
    return Figure(
        id="spectra-layers",
        title="The change of each layer",
        plot=plot,
        caption=(
            "From the singular values of all modules of a layer together, as of one "
            "block-diagonal matrix. Left: norm of the change over that of the adapted base weights."
        ),
        how_to_read=(
            "A low effective rank, or few directions for 90 % of the squared norm: the layer's "
            "change is concentrated. Like all spectra this alone proves nothing."
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
    parts = [_panel(item) for item in found]
    top = max(largest(item.frobenius) for item in found)
    return Figure(
        id="spectra-norms",
        title="Size of the weight change",
        plot=layer_map(parts, magnitude(top, "norm")),
        caption=(
            "Frobenius norm of each module's weight change dW. One colour scale for all adapters; "
            "hovering shows the largest singular value, the ranks and the size relative to W."
        ),
        how_to_read=(
            "Bright modules were changed most. Where clean and poisoned look alike, the change is "
            "the task's; size shows where training wrote, not what that does."
        ),
        alt="Largest norm of a change: "
        + "; ".join(f"{part.title}, {part.strongest()}" for part in parts)
        + ".",
    )


def _panel(item: Spectra) -> Panel:
    place = layout(item.modules, item.layers)
    return module_panel(
        place,
        item.adapter,
        Quantity("‖dW‖", place.fill(item.frobenius, root_sum_of_squares)),
        Quantity("largest σ", place.fill(item.singular_values[:, 0], np.max)),
        Quantity("effective rank", place.fill(item.effective_rank, np.max)),
        Quantity("stable rank", place.fill(item.stable_rank, np.max)),
        Quantity("share of the squared norm", place.fill(item.share, np.sum), "%"),
        Quantity("‖dW‖ / ‖W‖", place.fill(item.relative_norm, np.max)),
    )


def spectrum_lines(tables: Sequence[tuple[str, Look, tuple[str, ...], np.ndarray]]) -> go.Figure:
    """Small multiples by kind of module: median spectrum over layers with its range.

    Args:
        tables: name in the legend, look, modules ``[module]``, singular values ``[module, rank]``.
    """
    kinds = ordered(name for _, _, modules, _ in tables for name in modules)
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
    for name, look, modules, values in tables:
        of = [kind_of(module) for module in modules]
        for index, kind in enumerate(kinds):
            if kind not in of:
                continue
            part = values[[k == kind for k in of]]
            x = np.flatnonzero((part > 0).any(0))
            part = np.where(part > 0, part, np.nan)[:, x]
            ends = [np.nanmedian(part, 0), np.nanmin(part, 0), np.nanmax(part, 0)]
            layer_lines(
                plot,
                Quantity("median [smallest, largest]", np.stack(ends, 1)),
                x=x + 1,
                places="place",
                name=name,
                look=look,
                mode="lines",
                row=index // wide + 1,
                col=index % wide + 1,
            )
    plot.update_yaxes(type="log", dtick=1, exponentformat="power")
    plot.update_yaxes(title_text="singular value", col=1)
    plot.update_xaxes(title_text="place in the spectrum", row=rows)
    plot.update_layout(legend={"y": 1 + 40 / (90 + 190 * rows)}, margin={"t": 72})
    return plot


def _alt(item: Spectra) -> str:
    top = item.singular_values.max(0)
    return (
        f"{item.adapter}: largest singular value {number(float(top[0]))}, "
        f"median effective rank {number(float(np.median(item.effective_rank)))} of {top.size}"
    )
