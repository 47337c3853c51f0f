"""What each operation achieves and costs: ASR against perplexity, and against KL divergence."""

import math
from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from ...core.records.results import Behaviour, RunRecords
from ..base.figure import FIGURES, Figure
from ..base.lines import error_bars
from ..base.text import change, number, rate, spread_kl
from ..base.theme import clear, looks, panels, single, text
from .costs import KL, LINEAR_UP_TO, PERPLEXITY, Cost, cost_axis, goal_lines, goal_words, stretch


def relative(rows: tuple[Behaviour, ...]) -> dict[str, float]:
    """Perplexity change of each subject, as a fraction; NaN if undefined.

    Relative to poisoned, or to the adapter that an evaluation is about.
    """
    suspicious = ("poisoned", "adapter")
    start = next((row.perplexity for row in rows if row.subject in suspicious), math.nan)
    if not math.isfinite(start) or start <= 0:
        return {row.subject: math.nan for row in rows}
    return {row.subject: row.perplexity / start - 1 for row in rows}


@FIGURES.register("tradeoff")
def tradeoff(records: RunRecords) -> list[Figure]:
    """One marker per subject: ASR with its interval against either cost, where it is finite."""
    if records.comparison is None or not records.comparison.rows:
        return []
    rows = records.comparison.rows
    moved = relative(rows)
    changes = {name: np.array([value, math.nan, math.nan]) for name, value in moved.items()}
    apart = {row.subject: np.array([row.kl, row.kl_low, row.kl_high]) for row in rows}
    views = [_view(records, changes, PERPLEXITY, moved), _view(records, apart, KL, moved)]
    return [view for view in views if view is not None]


def _view(
    records: RunRecords, costs: Mapping[str, np.ndarray], cost: Cost, moved: Mapping[str, float]
) -> Figure | None:
    """The trade-off against one cost; None where it is finite for nobody.

    Args:
        records: of the run.
        costs: cost of each subject with its interval, ``[3]``; NaN ends where it has none.
        cost: which of the two it is.
        moved: perplexity change of each subject, for hover texts.
    """
    assert records.comparison is not None
    rows = records.comparison.rows
    drawn = [row for row in rows if math.isfinite(costs[row.subject][0])]
    left = [row.subject for row in rows if row not in drawn]
    if not drawn:
        return None
    ends = [float(v) for row in drawn for v in costs[row.subject] if math.isfinite(v)]
    linear = max(map(abs, ends)) <= LINEAR_UP_TO
    plot = panels([""], height=460)
    colours = looks(records)
    for row in drawn:
        x = costs[row.subject] if linear else stretch(costs[row.subject])
        _marker(plot, row, x, colours[row.subject], moved[row.subject])
    goal_lines(plot, records.goals, linear, cost)
    cost_axis(plot, ends, records.goals, linear, cost)
    plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", title_text="ASR, held out")
    plot.update_layout(
        showlegend=True,
        margin={"t": 24},
        legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"},
    )
    scale = "" if linear else " The horizontal axis is linear near 0 and logarithmic beyond."
    missing = f" Not drawn, {cost.name} not finite: {', '.join(left)}." if left else ""
    first = cost is PERPLEXITY
    return Figure(
        id="tradeoff" if first else "tradeoff-kl",
        title="Backdoor removed against damage done" + ("" if first else ": changed answers"),
        plot=plot,
        caption=(
            f"Attack success rate with its 95 % interval against {cost.caption}."
            f"{goal_words(records.goals, cost)}{scale}{missing}"
        ),
        how_to_read=(
            "Down is less backdoor, right is more damage. Where goals are drawn, an operation "
            "meets them when its whole interval lies below the horizontal line and its marker "
            "left of the vertical one. Compare it with the random cuts of the same budget and "
            "with base (no adapter at all)."
            + (
                ""
                if first
                else " KL is 0 where clean answers are given with the same probabilities as "
                "before; perplexity can be unchanged where they are not."
            )
        ),
        alt="; ".join(
            f"{row.subject}: ASR {rate(row.asr)}, "
            + (f"perplexity {change(moved[row.subject])}" if first else f"KL {spread_kl(row)}")
            for row in drawn
        )
        + "."
        + missing,
    )


def _marker(
    plot: go.Figure, row: Behaviour, x: np.ndarray, look: tuple[str, str], moved: float
) -> None:
    """A subject at its ASR and a cost ``[3]`` on the axis."""
    colour, symbol = look
    asr = np.array([[row.asr.value, row.asr.low, row.asr.high]])
    plot.add_trace(
        go.Scatter(
            x=single(x[:1]),
            y=single([row.asr.value]),
            mode="markers",
            name=text(row.subject),
            marker={"color": colour, "symbol": symbol, "size": 12},
            error_x=error_bars(x[None], clear(colour, 0.7), width=5),
            error_y=error_bars(asr, clear(colour, 0.7), width=5),
            hovertext=[
                f"{text(row.subject)}<br>ASR {rate(row.asr)}"
                f"<br>perplexity {number(row.perplexity)} ({change(moved)})"
                f"<br>KL {spread_kl(row)}"
                f"<br>FTR {rate(row.ftr)}<br>degenerate {rate(row.degenerate)}"
            ],
            hoverinfo="text",
        )
    )
