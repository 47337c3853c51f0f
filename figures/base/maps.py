"""Maps of layers side by side, the drawing that most figures share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from .grid import Layout
from .quantities import Quantity, hover, written
from .text import token, visible
from .theme import named, panels, single, text

MOST_CELLS = 250_000
"""Maps of more cells together are drawn in blocks."""
MOST_TEXTS = 50_000
"""Maps of more cells together show the value alone on hovering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A map with a row for each layer; labels are untrusted."""

    title: str
    """Above the map, and first in its hover texts."""
    quantities: Sequence[Quantity]
    """The first is drawn, all are in the hover text; ``[layer, column]``."""
    layers: Sequence[int]
    """Layer of each row; -1 outside the layers."""
    columns: Sequence[str]
    """Label of each column."""
    roles: Sequence[str] = ()
    """Role of each column, written beside its label where it differs; triggers are bold."""
    cells: Sequence[Sequence[str]] = ()
    """Name of each cell, instead of its title, layer and column."""
    about: str = ""
    """What a column is, before its label in hover texts."""
    axis: str = "coloraxis"
    """Name of its colour axis."""

    @property
    def values(self) -> np.ndarray:
        """What is drawn, without intervals, ``[layer, column]``."""
        values = self.quantities[0].values
        return values[..., 0] if values.ndim == 3 else values

    def place(self, row: int, column: int) -> str:
        """Name of a cell, untrusted."""
        if self.cells:
            return self.cells[row][column]
        role = self.roles[column] if self.roles else self.columns[column]
        more = "" if role == self.columns[column] else f" ({role})"
        name = f"{self.about} {token(self.columns[column], limit=40)}".strip()
        return f"{layer_name(self.layers[row])}, {name}{more}"

    def strongest(self, *, magnitude: bool = False) -> str:
        """Place and value of the largest cell, untrusted.

        Args:
            magnitude: whether values below zero count as much as those above.
        """
        values = np.abs(self.values) if magnitude else self.values
        if not np.isfinite(values).any():
            return "undefined"
        row, column = (int(i) for i in np.unravel_index(int(np.nanargmax(values)), values.shape))
        first = self.quantities[0]
        shown = written(first.values[row, column], first.unit)
        return f"{self.place(row, column)}: {shown}"


def layer_name(layer: int) -> str:
    """Name of a layer."""
    return f"layer {layer}" if layer >= 0 else "outside the layers"


def layer_labels(layers: Sequence[int] | np.ndarray) -> list[str]:
    """Labels of an axis of layers."""
    return [str(int(layer)) if layer >= 0 else "outside" for layer in layers]


def module_panel(place: Layout, title: str, *quantities: Quantity) -> Panel:
    """A map of layer by kind of module, of values that `place.fill` laid out."""
    return Panel(
        title=title,
        quantities=quantities,
        layers=place.layers,
        columns=place.kinds,
        cells=place.names(),
    )


def layer_map(
    parts: Sequence[Panel],
    colours: dict[str, Any],
    *,
    rotated: bool = False,
    most: int = 40,
) -> go.Figure:
    """Maps of layers side by side.

    Args:
        parts: the maps.
        colours: settings of ``coloraxis``.
        rotated: whether the labels below are slanted.
        most: labels below one map; of more, some are left out.
    """
    rows = max(len(part.layers) for part in parts)
    shared = len({tuple(part.layers) for part in parts}) == 1
    plot = panels(
        [text(part.title, limit=36) for part in parts],
        height=int(min(760, 140 + (26 if rows < 16 else 20) * max(rows, 5))) + 60 * rotated,
        shared_yaxes=shared,
        horizontal_spacing=0.03 if shared else 0.08,
    )
    block, few = _block(parts), sum(part.values.size for part in parts) <= MOST_TEXTS
    for column, part in enumerate(parts, 1):
        plot.add_trace(_heatmap(part, block, few), row=1, col=column)
        plot.update_xaxes(**_below(part, most), row=1, col=column)
        plot.update_yaxes(**named(layer_labels(part.layers), most=16), row=1, col=column)
    if rotated:
        plot.update_xaxes(tickangle=-50)
    plot.update_yaxes(title_text="layer", row=1, col=1)
    plot.update_layout(coloraxis=colours)
    return plot


def _heatmap(part: Panel, block: tuple[int, int], few: bool) -> go.Heatmap:
    link: dict[str, Any] = {"link": "layer", "layers": [int(layer) for layer in part.layers]}
    if part.cells:
        link |= {"link": "kind", "kinds": [visible(kind) for kind in part.columns]}
    head = "" if part.cells else f"{text(part.title, limit=36)}, "
    texts = [
        [
            hover(head + text(part.place(row, column), limit=100), part.quantities, row, column)
            for column in range(len(part.columns))
        ]
        for row in range(len(part.layers) if few else 0)
    ]
    return go.Heatmap(
        z=single(block_reduce(part.values, block)),
        x0=(block[1] - 1) / 2,
        dx=block[1],
        y0=(block[0] - 1) / 2,
        dy=block[0],
        hovertext=texts if few else None,
        hoverinfo="text" if few else "y+z",
        hoverongaps=False,
        coloraxis=part.axis,
        xgap=1 if few else 0,
        ygap=1 if few else 0,
        meta=link if few else None,
    )


def _below(part: Panel, most: int) -> dict[str, Any]:
    """The horizontal axis: labels with their roles, those of the trigger in bold."""
    axis = named(part.columns, most=most, limit=16)
    if not part.roles:
        return axis
    for place, index in enumerate(axis["tickvals"]):
        label, role = axis["ticktext"][place], part.roles[int(index)]
        label += "" if role == part.columns[index] else f" · {text(role)}"
        axis["ticktext"][place] = f"<b>{label}</b>" if role == "trigger" else label
    return axis


def _block(parts: Sequence[Panel]) -> tuple[int, int]:
    rows = max(len(part.layers) for part in parts)
    columns = max(len(part.columns) for part in parts)
    return block_sizes(rows, columns, MOST_CELLS // len(parts))


def block_sizes(layers: int, columns: int, most: int) -> tuple[int, int]:
    """Rows and columns joined into one drawn cell so that at most `most` cells are drawn."""
    high = wide = 1
    while -(-layers // high) * -(-columns // wide) > most:
        if layers / high > columns / wide:
            high += 1
        else:
            wide += 1
    return high, wide


def block_reduce(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """The value of largest magnitude (with its sign) of each block; NaN where all are NaN."""
    if block == (1, 1):
        return values
    (high, wide), (rows, columns) = block, values.shape
    padded = np.full((-(-rows // high) * high, -(-columns // wide) * wide), np.nan)
    padded[:rows, :columns] = values
    parts = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide)
    flat = parts.swapaxes(1, 2).reshape(parts.shape[0], parts.shape[2], high * wide)
    best = np.argmax(np.where(np.isnan(flat), -1.0, np.abs(flat)), axis=2)
    return np.take_along_axis(flat, best[..., None], axis=2)[..., 0]


def block_words(parts: Sequence[Panel]) -> str:
    """The caption's part on maps too large to draw every cell; empty for others."""
    high, wide = _block(parts)
    if (high, wide) == (1, 1):
        return ""
    return (
        f" Drawn in blocks of {high} × {wide} cells, each showing its value of largest magnitude; "
        "the full matrix is in the run's records."
    )
