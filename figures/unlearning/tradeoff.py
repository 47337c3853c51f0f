"""What each operation achieves and costs: ASR against the change of perplexity."""

import math

import numpy as np
import plotly.graph_objects as go

from ...core.records.goals import Goals
from ...core.records.results import Behaviour, RunRecords
from ..base.figure import FIGURES, Figure
from ..base.lines import error_bars
from ..base.text import change, number, percent, rate
from ..base.theme import MUTED, clear, looks, panels, single, text

LINEAR_UP_TO = 0.5
"""Changes up to +50 % are drawn on a linear axis, larger ones on a signed logarithmic one."""
LEAST_RANGE = 0.05
"""A rise of perplexity that the axis always shows."""
KNEE = 0.005
"""Where the signed logarithmic axis turns from linear to logarithmic."""

_TICKS = (-0.9, -0.5, -0.2, -0.05, 0, 0.05, 0.2, 1, 9, 99, 1e3, 1e4, 1e6, 1e8)


def relative(rows: tuple[Behaviour, ...]) -> dict[str, float]:
    """Perplexity change of each subject, as a fraction; NaN if undefined.

    Relative to poisoned, or to the adapter that an evaluation is about.
    """
    suspicious = ("poisoned", "adapter")
    start = next((row.perplexity for row in rows if row.subject in suspicious), math.nan)
    if not math.isfinite(start) or start <= 0:
        return {row.subject: math.nan for row in rows}
    return {row.subject: row.perplexity / start - 1 for row in rows}


def stretch(values: np.ndarray) -> np.ndarray:
    """Signed logarithm, linear around 0: the place of a change on the axis."""
    return np.sign(values) * np.log1p(np.abs(values) / KNEE)


def _place(value: float) -> float:
    return float(stretch(np.array(value)))


@FIGURES.register("tradeoff")
def tradeoff(records: RunRecords) -> list[Figure]:
    """One marker per subject: ASR with its interval against the change of perplexity."""
    if records.comparison is None or not records.comparison.rows:
        return []
    rows = records.comparison.rows
    moved = relative(rows)
    drawn = [row for row in rows if math.isfinite(moved[row.subject])]
    left = [row.subject for row in rows if row not in drawn]
    if not drawn:
        return []
    linear = max(abs(moved[row.subject]) for row in drawn) <= LINEAR_UP_TO
    plot = panels([""], height=460)
    colours = looks(records)
    for row in drawn:
        _marker(plot, row, moved[row.subject], colours[row.subject], linear)
    goal_lines(plot, records.goals, linear)
    change_axis(plot, [moved[row.subject] for row in drawn], records.goals, linear)
    plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", title_text="ASR, held out")
    plot.update_layout(
        showlegend=True,
        margin={"t": 24},
        legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top"},
    )
    scale = "" if linear else " The horizontal axis is linear near 0 and logarithmic beyond."
    missing = f" Not drawn, perplexity not finite: {', '.join(left)}." if left else ""
    return [
        Figure(
            id="tradeoff",
            title="Backdoor removed against damage done",
            plot=plot,
            caption=(
                "Attack success rate with its 95 % interval against the change of perplexity on "
                "held-out clean completions relative to the poisoned adapter."
                f"{goal_words(records.goals)}{scale}{missing}"
            ),
            how_to_read=(
                "Down is less backdoor, right is more damage. Where goals are drawn, an operation "
                "meets them when its whole interval lies below the horizontal line and its marker "
                "left of the vertical one. Compare it with the random cuts of the same budget and "
                "with base (no adapter at all)."
            ),
            alt="; ".join(
                f"{row.subject}: ASR {rate(row.asr)}, perplexity {change(moved[row.subject])}"
                for row in drawn
            )
            + "."
            + missing,
        )
    ]


def goal_lines(plot: go.Figure, goals: Goals, linear: bool) -> None:
    """Draw the goals of ASR and perplexity, where given, as dashed lines."""
    line = {"color": MUTED, "dash": "dash", "width": 1}
    if goals.asr is not None:
        plot.add_hline(y=goals.asr, line=line)
    if goals.perplexity is not None:
        plot.add_vline(x=goals.perplexity if linear else _place(goals.perplexity), line=line)


def goal_words(goals: Goals) -> str:
    """The caption's part on the goals; empty where none is given."""
    found = [] if goals.asr is None else [f"ASR {percent(goals.asr)}"]
    if goals.perplexity is not None:
        found.append(f"perplexity {percent(goals.perplexity, signed=True)}")
    return f" Dashed: the goals, {' and '.join(found)}." if found else ""


def _marker(
    plot: go.Figure, row: Behaviour, moved: float, look: tuple[str, str], linear: bool
) -> None:
    x = moved if linear else _place(moved)
    colour, symbol = look
    plot.add_trace(
        go.Scatter(
            x=single([x]),
            y=single([row.asr.value]),
            mode="markers",
            name=text(row.subject),
            marker={"color": colour, "symbol": symbol, "size": 12},
            error_y=error_bars(
                np.array([[row.asr.value, row.asr.low, row.asr.high]]), clear(colour, 0.7), width=5
            ),
            hovertext=[
                f"{text(row.subject)}<br>ASR {rate(row.asr)}"
                f"<br>perplexity {number(row.perplexity)} ({change(moved)})"
                f"<br>FTR {rate(row.ftr)}<br>degenerate {rate(row.degenerate)}"
            ],
            hoverinfo="text",
        )
    )


def change_axis(plot: go.Figure, values: list[float], goals: Goals, linear: bool) -> None:
    """Make the horizontal axis one of perplexity changes that holds some values.

    Args:
        plot: the drawing.
        values: changes to be seen, fractions, finite.
        goals: that of perplexity is to be seen, too.
        linear: whether the axis is linear; else points are drawn at `stretch` of their value.
    """
    plot.update_xaxes(title_text="perplexity change relative to poisoned")
    seen = [*values, 0.0, goals.perplexity or 0.0]
    if linear:
        low, high = min(seen), max(max(seen), LEAST_RANGE)
        room = 0.08 * (high - low)
        plot.update_xaxes(range=[low - room, high + room], tickformat="+.0%")
        return
    places = stretch(np.array([*seen, LEAST_RANGE]))
    room = 0.06 * float(places.max() - places.min())
    low, high = float(places.min()) - room, float(places.max()) + room
    ticks = _readable([t for t in _TICKS if low <= _place(t) <= high], high - low)
    plot.update_xaxes(
        range=[low, high],
        tickmode="array",
        tickvals=[_place(t) for t in ticks],
        ticktext=[_tick(t) for t in ticks],
    )


def _readable(ticks: list[float], width: float) -> list[float]:
    """Ticks far enough apart to be read; those near zero come first."""
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda t: (abs(t), -t)):
        if all(abs(_place(tick) - _place(other)) > 0.055 * width for other in kept):
            kept.append(tick)
    return sorted(kept)


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    if value >= 999:
        return f"×10{'³⁴⁵⁶⁷⁸⁹'[round(math.log10(value)) - 3]}"
    if value >= 9:
        return f"×{value + 1:.0f}"
    return f"{100 * value:+.0f} %".replace("-", "−")
