"""The bench at a glance: what each entry leaves of the backdoor, and what it costs."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ...core.records.bench import BenchTable, Standing
from ...core.records.goals import Goals
from ..base.figure import Figure
from ..base.lines import error_bars
from ..base.text import change, number, percent, plural
from ..base.theme import GREY, INK, MUTED, clear, panels, single, text
from ..unlearning.costs import (
    KL,
    LINEAR_UP_TO,
    PERPLEXITY,
    Cost,
    cost_axis,
    goal_lines,
    goal_words,
    stretch,
)
from .entries import looks


def spanned(values: np.ndarray, *, signed: bool = False, points: bool = False) -> str:
    """A mean with its interval as percentages; without brackets when it has none.

    Args:
        values: mean, low, high; fractions.
        signed: a change.
        points: of a rate, in percentage points.
    """
    shown = [change(float(v)) if signed else percent(float(v)) for v in values]
    bare = [text.removesuffix(" %") for text in shown]
    shown[0] = f"{bare[0]} points" if points else shown[0]
    if not np.isfinite(values[1:]).all():
        return shown[0]
    return f"{shown[0]} [{bare[1]}, {bare[2]}]"


def spanned_kl(values: np.ndarray) -> str:
    """A mean KL divergence with its interval; without brackets when it has none."""
    shown = [number(float(v)) for v in values]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if np.isfinite(values[1:]).all() else shown[0]


def bench_tradeoff(table: BenchTable, goals: Goals) -> list[Figure]:
    """For each comparison, every entry's mean ASR against the mean of either cost."""
    numbers = dict.fromkeys(s.comparison for s in table.standings)
    drawn = [[s for s in table.standings if s.comparison == number] for number in numbers]
    return [
        _figure(table, goals, group, cost, several=len(drawn) > 1)
        for cost in (PERPLEXITY, KL)
        for group in drawn
        if cost is PERPLEXITY or any(math.isfinite(s.kl[0]) for s in group)
    ]


def front(group: Sequence[Standing], cost: Cost = PERPLEXITY) -> list[Standing]:
    """Entries that no other equals in both ASR and a cost, by rising cost.

    References are left out; of equals the first is taken.
    """
    rivals = [s for s in group if s.kind != "reference" and np.isfinite(_place(s, cost)).all()]
    out: list[Standing] = []
    for item in sorted(rivals, key=lambda s: tuple(_place(s, cost))):
        if not out or item.asr[0] < out[-1].asr[0]:
            out.append(item)
    return out


def _place(item: Standing, cost: Cost) -> np.ndarray:
    return np.array([getattr(item, cost.field)[0], item.asr[0]])


def _figure(
    table: BenchTable, goals: Goals, group: list[Standing], cost: Cost, *, several: bool
) -> Figure:
    shown = [s for s in group if np.isfinite(_place(s, cost)).all()]
    left = [s.entry for s in group if s not in shown]
    ends = [float(v) for s in shown for v in getattr(s, cost.field) if math.isfinite(v)]
    linear = max(map(abs, ends), default=0.0) <= LINEAR_UP_TO
    plot = panels([""], height=max(480, 130 + 21 * sum(not s.control_for for s in shown)))
    style = looks(table)
    best = front(shown, cost)
    _front(plot, best, cost, linear)
    _links(plot, shown, cost, linear)
    for i, item in enumerate(sorted(shown, key=lambda s: not s.control_for)):
        first = bool(item.control_for) and i == 0
        _marker(plot, item, style[item.entry], cost, linear, first)
    goal_lines(plot, goals, linear, cost)
    cost_axis(plot, ends or [0.0], goals, linear, cost)
    plot.update_xaxes(title_text=f"mean {cost.axis}")
    plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", title_text="mean ASR, held out")
    plot.update_layout(
        showlegend=True,
        margin={"t": 24},
        legend={"orientation": "v", "x": 1.02, "y": 1, "yanchor": "top", "traceorder": "normal"},
    )
    which, n = group[0].comparison, group[0].n
    missing = f" Not drawn, without a finite mean: {', '.join(left)}." if left else ""
    scale = "" if linear else " The horizontal axis is linear near 0 and logarithmic beyond."
    names = ", ".join(s.entry for s in group if s.rank == 1)
    name = "bench-tradeoff" if cost is PERPLEXITY else "bench-tradeoff-kl"
    return Figure(
        id=name if which == 1 else f"{name}-{which}",
        title=f"ASR against {cost.name}" + (f", comparison {which}" if several else ""),
        plot=plot,
        caption=(
            f"Means over {plural(n, 'subject')} that all entries here were run on, every cell "
            "counting the same; bars: 95 % intervals over subjects, "
            + (
                "those of the one subject itself here. "
                if n == 1
                else "cells and seeds resampled. "
            )
            + "Ringed: rank 1 by ASR, perplexity, accuracy and seconds together. "
            + _front_words(best, cost)
            + " Grey: controls, joined to the method whose budget they share."
            f"{goal_words(goals, cost)}{scale}{missing}"
        ),
        how_to_read=(
            "Down is less backdoor, right is more damage. A method earns its place when it lies "
            "below and left of its own grey controls by more than the bars. A bar without length "
            "means that subjects agree, not that each one's ASR is known exactly: that interval "
            "is in the maps below."
        ),
        alt=f"Rank 1: {names}. "
        + "; ".join(
            f"{s.entry}: ASR {spanned(s.asr)}, {_cost_words(s, cost)}, rank {s.rank}" for s in group
        )
        + ".",
    )


def _cost_words(item: Standing, cost: Cost) -> str:
    if cost is PERPLEXITY:
        return f"perplexity {spanned(item.perplexity_change, signed=True)}"
    return f"KL {spanned_kl(item.kl)}"


def _front_words(best: list[Standing], cost: Cost) -> str:
    if not best:
        return "No method has finite means."
    if len(best) == 1:
        return (
            f"By the means of ASR and {cost.name} alone, {best[0].entry} is at least as good as "
            "all others, references left out."
        )
    return f"Dotted line: the front of ASR and {cost.name} alone, references left out."


def _x(values: np.ndarray, linear: bool) -> np.ndarray:
    return values if linear else stretch(values)


def _front(plot: go.Figure, best: list[Standing], cost: Cost, linear: bool) -> None:
    if len(best) < 2:
        return
    places = np.array([_place(s, cost) for s in best])
    plot.add_trace(
        go.Scatter(
            x=single(_x(places[:, 0], linear)),
            y=single(places[:, 1]),
            mode="lines",
            line={"color": MUTED, "dash": "dot", "width": 1.4, "shape": "hv"},
            hoverinfo="skip",
            name="front of the two",
        )
    )


def _links(plot: go.Figure, shown: list[Standing], cost: Cost, linear: bool) -> None:
    """A thin line from each control to its method."""
    at = {s.entry: _place(s, cost) for s in shown}
    pairs = [(at[s.entry], at[s.control_for]) for s in shown if s.control_for in at]
    if not pairs:
        return
    gap = np.full(2, np.nan)
    line = np.array([point for one, other in pairs for point in (one, other, gap)])
    plot.add_trace(
        go.Scatter(
            x=single(_x(line[:, 0], linear)),
            y=single(line[:, 1]),
            mode="lines",
            line={"color": clear(GREY, 0.45), "width": 1},
            hoverinfo="skip",
            showlegend=False,
        )
    )


def _marker(
    plot: go.Figure,
    item: Standing,
    look: tuple[str, str],
    cost: Cost,
    linear: bool,
    first: bool,
) -> None:
    colour, symbol = look
    moved, control = _x(getattr(item, cost.field), linear), bool(item.control_for)
    name = text(item.entry, limit=40)
    of = f"<br>control for {text(item.control_for, limit=40)}" if control else ""
    plot.add_trace(
        go.Scatter(
            x=single(moved[:1]),
            y=single(item.asr[:1]),
            mode="markers",
            name="controls" if control else f"{name} · rank {item.rank}",
            legendgroup="controls" if control else name,
            showlegend=first or not control,
            legendrank=1001 if control else 900 + item.rank,
            marker={
                "color": colour,
                "symbol": symbol,
                "size": 9 if control else 13,
                "line": {"color": INK, "width": 2 if item.rank == 1 else 0},
            },
            error_x=error_bars(moved[None], clear(colour, 0.6)),
            error_y=error_bars(item.asr[None], clear(colour, 0.6)),
            hovertext=[
                f"{name}{of}<br>ASR {spanned(item.asr)}"
                f"<br>perplexity {spanned(item.perplexity_change, signed=True)}"
                f"<br>KL {spanned_kl(item.kl)} nats/token"
                f"<br>accuracy {spanned(item.accuracy_change, signed=True, points=True)}"
                f"<br>{number(float(item.seconds[0]))} s<br>rank {item.rank}, "
                f"{plural(item.n, 'subject')}"
            ],
            hoverinfo="text",
        )
    )
