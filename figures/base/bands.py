"""Lines over the layers with their intervals as bands, the drawing that several figures share."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from .theme import clear, single, text


def band(
    x: Sequence[float] | np.ndarray,
    values: np.ndarray,
    hover: Sequence[str],
    *,
    name: str,
    colour: str,
    dash: str = "solid",
    shown: bool = True,
) -> list[go.Scatter]:
    """A line with its interval; nothing where no value is defined.

    Args:
        x: places, ``[point]``.
        values: value, lower and upper end, ``[point, 3]``.
        hover: one text per point, safe for plotly.
        name: in the legend; lines of one name share an entry.
        colour: of line and band, ``#rrggbb``.
        dash: plotly's dash of the line.
        shown: whether the legend names it here.
    """
    some = np.asarray(np.isfinite(values).all(1))
    if not some.any():
        return []
    at, kept = np.asarray(x, float)[some], values[some]
    label = text(name)
    edge = go.Scatter(
        x=single(np.concatenate([at, at[::-1]])),
        y=single(np.concatenate([kept[:, 2], kept[::-1, 1]])),
        fill="toself",
        fillcolor=clear(colour, 0.18),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=label,
        showlegend=False,
    )
    line = go.Scatter(
        x=single(at),
        y=single(kept[:, 0]),
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 5},
        name=label,
        legendgroup=label,
        showlegend=shown,
        hovertext=[words for words, keep in zip(hover, some.tolist(), strict=True) if keep],
        hoverinfo="text",
    )
    return [edge, line]
