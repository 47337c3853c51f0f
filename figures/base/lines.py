"""Lines over layers or steps with their intervals as bands, and intervals as error bars."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from .quantities import Quantity, hover
from .text import number
from .theme import clear, panels, single, text


def line_panels(titles: Sequence[str], x: str, y: str, *, height: int = 380, **more: Any) -> Any:
    """Empty panels for lines, with the legend above them.

    Args:
        titles: one per panel, untrusted.
        x: title of every horizontal axis.
        y: title of the first vertical axis.
        height: of the whole figure, pixels.
        **more: passed on to `theme.panels`.
    """
    options = {"shared_yaxes": "all", "horizontal_spacing": 0.04} | more
    plot = panels([text(title, limit=60) for title in titles], height=height, **options)
    plot.update_xaxes(title_text=x)
    plot.update_yaxes(title_text=y, col=1)
    plot.update_layout(showlegend=True, legend={"y": 1.13}, margin={"t": 76})
    return plot


def layer_lines(
    plot: go.Figure,
    *quantities: Quantity,
    name: str,
    look: tuple[str, str],
    x: Sequence[float] | np.ndarray | None = None,
    places: str | Sequence[str] = "layer",
    dash: str = "solid",
    mode: str = "lines+markers",
    band: bool = True,
    row: int = 1,
    col: int = 1,
) -> None:
    """Draw a line, with its interval as a band where it has one; nothing without points.

    Args:
        plot: figure to draw into.
        *quantities: the first is drawn, all are in the hover text; ``[point]``.
        name: in legend and hover text, untrusted; lines of one name share an entry.
        look: colour ``#rrggbb`` and marker symbol.
        x: where the points are, ``[point]``; from 0 by default.
        places: what a point is, before its `x`; or a text for each, safe for plotly.
        dash: plotly's dash of the line.
        mode: plotly's mode.
        band: whether intervals are drawn; if not, they are in the hover text alone.
        row: of the panel, from 1.
        col: of the panel, from 1.
    """
    values, label, group = quantities[0].values, text(name, limit=60), text(name, limit=0)
    at = np.arange(len(values)) if x is None else np.asarray(x, float)
    middle = values if values.ndim == 1 else values[:, 0]
    if not len(at):
        return
    if isinstance(places, str):
        places = [f"{places} {number(float(place))}" for place in at]
    if values.ndim == 2 and band:
        area(plot, at, values[:, 1:], look[0], name=name, row=row, col=col)
    traces: Any = plot.data
    line = go.Scatter(
        x=single(at),
        y=single(middle),
        mode=mode,
        name=label,
        legendgroup=group,
        showlegend=not any(t.legendgroup == group and t.showlegend for t in traces),
        line={"color": look[0], "width": 2, "dash": dash},
        marker={"color": look[0], "symbol": look[1], "size": 6},
        hovertext=[
            hover(", ".join(filter(None, (label, place))), quantities, point)
            for point, place in enumerate(places)
        ],
        hoverinfo="text",
    )
    plot.add_trace(line, row=row, col=col)


def area(
    plot: go.Figure,
    x: np.ndarray,
    ends: np.ndarray,
    colour: str,
    *,
    name: str,
    legend: bool = False,
    row: int = 1,
    col: int = 1,
) -> None:
    """Fill what lies between lower and upper ends, ``[point, 2]``, where both are defined."""
    known = np.isfinite(ends).all(1)
    if not known.any():
        return
    at, (low, high) = x[known], ends[known].T
    edge = go.Scatter(
        x=single(np.concatenate([at, at[::-1]])),
        y=single(np.concatenate([high, low[::-1]])),
        fill="toself",
        fillcolor=clear(colour, 0.18),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=text(name, limit=60),
        legendgroup=text(name, limit=0),
        showlegend=legend,
    )
    plot.add_trace(edge, row=row, col=col)


def error_bars(values: np.ndarray, colour: str, *, width: float = 3) -> dict[str, Any]:
    """Bars from lower to upper end, ``[point, 3]``; without length where an end is undefined."""
    middle, low, high = np.asarray(values, float).T
    return {
        "type": "data",
        "symmetric": False,
        "array": single(np.nan_to_num(np.maximum(high - middle, 0))),
        "arrayminus": single(np.nan_to_num(np.maximum(middle - low, 0))),
        "color": colour,
        "thickness": 1.4,
        "width": width,
    }
