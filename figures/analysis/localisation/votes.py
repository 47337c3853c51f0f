"""Scores of layers and modules by each method, side by side, and whether methods agree."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.patching import Verdict, Where
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure
from ...base.text import number, plural
from ...base.theme import diverging, named, panels, single, text

MOST = 24
"""Items drawn: those with the best mean rank."""


@FIGURES.register("votes")
def votes(records: RunRecords) -> list[Figure]:
    """One figure of the layers' votes, one of the modules'."""
    item = records.first(Where)
    found = (item.layers_verdict, item.modules_verdict) if item is not None else ()
    return [_figure(v) for v in found if v is not None and v.votes and v.names]


def _figure(item: Verdict) -> Figure:
    shown = _shown(item)
    scaled = np.stack([_scaled(vote.score) for vote in item.votes])
    methods = [
        f"{vote.method}{'' if vote.causal else ' (not counted)'}" for vote in item.votes
    ]  # fmt: skip
    names = [_short(item.names[i], item.what) for i in shown]
    hover = [
        [
            f"{text(vote.method)}: {text(vote.what)}<br>{text(item.names[i], limit=80)}"
            f"<br>score {number(float(vote.score[i]))}, {number(float(scaled[row, i]))} of its "
            f"largest<br>mean rank {number(float(item.mean_rank[i]))}"
            for i in shown
        ]
        for row, vote in enumerate(item.votes)
    ]
    plot = panels([""], height=150 + 30 * len(methods) + (90 if item.what == "module" else 0))
    plot.add_trace(
        go.Heatmap(
            z=single(scaled[:, shown]), x0=0, dx=1, y0=0, dy=1, hovertext=hover,
            hoverinfo="text", hoverongaps=False, coloraxis="coloraxis",
        )
    )  # fmt: skip
    angle = 0 if item.what == "layer" else -60
    plot.update_xaxes(**named(names, most=MOST, limit=24), tickangle=angle, title_text=item.what)
    plot.update_yaxes(**named(methods, most=30, limit=48), autorange="reversed")
    axis = diverging(1.0, "score / largest")
    plot.update_layout(coloraxis=axis, margin={"t": 20})
    causal = sum(vote.causal for vote in item.votes)
    left = len(item.names) - len(shown)
    return Figure(
        id=f"votes-{item.what}s",
        title=f"Scores of the {item.what}s by each method",
        plot=plot,
        caption=(
            f"{item.sentence} {plural(causal, 'causal method')}, "
            f"{len(item.votes) - causal} that read weights or estimate (not counted). "
            f"Agreement over all {item.what}s, Kendall's W of the causal methods: "
            f"{number(item.agreement)}."
            + (f" {plural(left, item.what)} of worse mean rank not drawn." if left else "")
        ),
        how_to_read=(
            "Each row is one method, scaled to its own largest score: orange is where it finds "
            "most. Read down a column: a place that many rows mark is well supported. Rows not "
            "counted show where the adapter is large or unusual, not what it does."
        ),
        alt=f"{item.sentence} Kendall's W {number(item.agreement)}.",
    )


def _shown(item: Verdict) -> list[int]:
    """Items to draw: all, or those of the best mean rank, in their own order."""
    if len(item.names) <= MOST:
        return list(range(len(item.names)))
    rank = np.where(np.isfinite(item.mean_rank), item.mean_rank, np.inf)
    return sorted(np.argsort(rank, kind="stable")[:MOST].tolist())


def _scaled(score: np.ndarray) -> np.ndarray:
    """Scores over their largest magnitude; NaN stays."""
    known = np.abs(score[np.isfinite(score)])
    top = known.max() if len(known) else 0.0
    return score / top if top > 0 else score


def _short(name: str, what: str) -> str:
    """A module's name without what all share."""
    if what == "layer":
        return name.removeprefix("layer ")
    parts = name.split(".")
    return ".".join(p for p in parts if p not in ("model", "layers", "self_attn", "mlp"))
