"""The one theme: colours, scales, fonts, margins, and model text made safe for plotly."""

import html
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ...core.records.results import RunRecords
from .text import token

INK, MUTED, GRID, PAPER, GAP = "#1b1f24", "#5b6470", "#e6e9ed", "#ffffff", "#d5d9df"
FONT = 'Inter, "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif'

BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW, GREY = "#56B4E9", "#CC79A7", "#C8B400", "#7A828C"
"""Okabe & Ito (2008); the yellow darkened for white paper, grey instead of black."""

FIXED = {"base": (GREY, "circle"), "clean": (BLUE, "square"), "poisoned": (VERMILLION, "diamond")}
OTHERS = (GREEN, ORANGE, SKY, PURPLE, YELLOW)
SYMBOLS = ("triangle-up", "cross", "star", "triangle-down", "x", "pentagon", "hexagram")

DIVERGING = (
    *((0.0, "#0b4f8a"), (0.2, "#5b9bc9"), (0.4, "#cfe2f0"), (0.5, "#f7f7f7")),
    *((0.6, "#f9dcc4"), (0.8, "#e38b4b"), (1.0, "#a84300")),
)
"""Blue below zero, orange above: distinct with any colour vision and in grey."""

MAGNITUDE = "Cividis"

DARK = {
    INK: "#e4e7eb",
    MUTED: "#9aa4b1",
    GRID: "#2b313a",
    PAPER: "#171b21",
    GAP: "#39404a",
    BLUE: "#4aa3df",
    GREY: "#98a1ac",
    "#0b4f8a": "#9bd0f7",
    "#5b9bc9": "#4a8fc4",
    "#cfe2f0": "#274257",
    "#f7f7f7": "#20252c",
    "#f9dcc4": "#55371f",
    "#e38b4b": "#c8743a",
    "#a84300": "#ffc08f",
}
"""What each light colour becomes on a dark page; the script swaps them one for one."""

_AXIS: dict[str, Any] = {
    "gridcolor": GRID,
    "linecolor": GAP,
    "tickcolor": GAP,
    "ticks": "outside",
    "ticklen": 4,
    "showline": True,
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 10, "font": {"size": 13}},
}
_BAR = {"thickness": 12, "outlinewidth": 0, "ticks": "outside", "tickcolor": GAP, "ticklen": 3}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "colorway": [BLUE, VERMILLION, *OTHERS, GREY],
        "margin": {"l": 64, "r": 28, "t": 44, "b": 48},
        "xaxis": {**_AXIS, "autotickangles": [0, -45, -90]},
        "yaxis": _AXIS,
        "coloraxis": {"colorbar": _BAR},
        "hoverlabel": {"align": "left", "font": {"family": FONT, "size": 12}},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.1, "yanchor": "bottom"},
        "annotationdefaults": {"font": {"color": INK}},
    }
)


def text(value: str, *, limit: int = 28) -> str:
    """Untrusted text for a plotly label: visible, shortened, escaped, its direction contained.

    Plotly reads ``<b>``, ``<br>`` and entities in labels, so these are escaped and never stripped;
    spaces at the ends, which SVG would drop, become ``␣``.
    """
    shown = token(value, limit=limit)
    if any(unicodedata.bidirectional(char) in {"R", "AL"} for char in shown):
        shown = f"\u2068{shown}\u2069"
    return html.escape(shown, quote=True)


def single(values: Any) -> np.ndarray:
    """An array as plotly packs it smallest without visible loss: float32."""
    return np.asarray(values, dtype=np.float32)


def clear(colour: str, alpha: float) -> str:
    """A ``#rrggbb`` colour made transparent, for bands."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def looks(records: RunRecords) -> dict[str, tuple[str, str]]:
    """Colour and marker symbol of every subject, the same in all figures of a run.

    A name that is no subject of the run is a grey circle.
    """
    names = [row.subject for row in records.comparison.rows] if records.comparison else []
    names += [op.subject for op in records.operations if op.subject not in names]
    free = [name for name in dict.fromkeys(names) if name not in FIXED]
    given = {
        name: (OTHERS[i % len(OTHERS)], SYMBOLS[i % len(SYMBOLS)]) for i, name in enumerate(free)
    }
    return defaultdict(lambda: (GREY, "circle"), FIXED | given)


def panels(titles: Sequence[str], *, height: int, columns: int = 0, **options: Any) -> go.Figure:
    """An empty themed figure of panels side by side, `columns` in a row (all by default).

    Args:
        titles: one per panel, already safe for plotly.
        height: of the whole figure, pixels.
        columns: panels in a row; 0 for one row.
        **options: passed on to `plotly.subplots.make_subplots`.
    """
    wide = columns or len(titles)
    rows = -(-len(titles) // wide)
    plot = make_subplots(rows=rows, cols=wide, subplot_titles=list(titles), **options)
    plot.update_annotations(font={"size": 13, "color": INK})
    plot.update_layout(template=TEMPLATE, height=height)
    return plot


def named(labels: Sequence[str], *, most: int = 40, limit: int = 28) -> dict[str, Any]:
    """Axis settings that write labels at 0, 1, 2 ...; thinned out when there are too many.

    Positions are numbers, so equal labels stay apart and ``2024`` stays a word.
    """
    every = max(1, -(-len(labels) // most))
    ticks = list(range(0, len(labels), every))
    return {
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [text(labels[i], limit=limit) for i in ticks],
        "range": [-0.5, len(labels) - 0.5],
        "showgrid": False,
    }


def diverging(limit: float, title: str) -> dict[str, Any]:
    """A colour axis from -limit to limit with its neutral colour at zero."""
    return {
        "cmin": -limit,
        "cmax": limit,
        "colorscale": [list(stop) for stop in DIVERGING],
        "colorbar": {"title": {"text": f"{title}<br> ", "side": "top", "font": {"size": 12}}},
    }


def magnitude(top: float, title: str) -> dict[str, Any]:
    """A colour axis from 0 to `top`, evenly perceived."""
    return {
        "cmin": 0,
        "cmax": top if top > 0 else 1,
        "colorscale": MAGNITUDE,
        "colorbar": {"title": {"text": f"{title}<br> ", "side": "top", "font": {"size": 12}}},
    }


def counts(top: float, title: str) -> dict[str, Any]:
    """A colour axis from 0 to `top` whose zero is as quiet as the paper."""
    upper = [[2 * place - 1, colour] for place, colour in DIVERGING if place >= 0.5]
    return magnitude(top, title) | {"colorscale": upper}


def largest(values: np.ndarray) -> float:
    """The largest magnitude among the defined values, 0 when there is none."""
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0
