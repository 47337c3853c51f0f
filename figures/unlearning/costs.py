"""What an operation costs on clean prompts, as the horizontal axis of a trade-off."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from ...core.records.goals import Goals
from ..base.text import change, number, percent
from ..base.theme import MUTED

LINEAR_UP_TO = 0.5
"""Costs up to this (+50 %, 0.5 nats) are drawn on a linear axis, larger ones on a signed
logarithmic one."""
LEAST_RANGE = 0.05
"""A cost that the axis always shows."""
KNEE = 0.005
"""Where the signed logarithmic axis turns from linear to logarithmic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One of the two costs."""

    key: str
    """Field of `Goals`."""
    field: str
    """Field of `Standing`."""
    name: str
    """In texts."""
    axis: str
    """Title of the axis."""
    caption: str
    """What it is, in a caption."""
    signed: Callable[[float], str]
    """Writes a value."""
    goal: Callable[[float], str]
    """Writes a goal."""
    tickformat: str
    """Of the linear axis."""
    ticks: tuple[float, ...]
    """Of the logarithmic axis."""
    tick: Callable[[float], str]
    """Writes one of them."""

    def wanted(self, goals: Goals) -> float | None:
        """The goal for it; None where none is given."""
        return getattr(goals, self.key)


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    if value >= 999:
        return f"×10{'³⁴⁵⁶⁷⁸⁹'[round(math.log10(value)) - 3]}"
    if value >= 9:
        return f"×{value + 1:.0f}"
    return f"{100 * value:+.0f} %".replace("-", "−")


PERPLEXITY = Cost(
    key="perplexity",
    field="perplexity_change",
    name="perplexity",
    axis="perplexity change relative to poisoned",
    caption="the change of perplexity on held-out clean completions relative to the poisoned "
    "adapter",
    signed=change,
    goal=lambda value: percent(value, signed=True),
    tickformat="+.0%",
    ticks=(-0.9, -0.5, -0.2, -0.05, 0, 0.05, 0.2, 1, 9, 99, 1e3, 1e4, 1e6, 1e8),
    tick=_tick,
)
KL = Cost(
    key="kl",
    field="kl",
    name="KL",
    axis="KL divergence from poisoned, nats per token",
    caption="the KL divergence from the poisoned adapter, nats per token of its own answers to "
    "held-out clean prompts",
    signed=number,
    goal=number,
    tickformat=".3~g",
    ticks=(0, 0.01, 0.05, 0.2, 1, 5, 20, 100),
    tick=number,
)


def stretch(values: np.ndarray) -> np.ndarray:
    """Signed logarithm, linear around 0: the place of a cost on the axis."""
    return np.sign(values) * np.log1p(np.abs(values) / KNEE)


def place(value: float) -> float:
    """The same of one cost."""
    return float(stretch(np.array(value)))


def goal_lines(plot: go.Figure, goals: Goals, linear: bool, cost: Cost = PERPLEXITY) -> None:
    """Draw the goals of ASR and of a cost, where given, as dashed lines."""
    line = {"color": MUTED, "dash": "dash", "width": 1}
    if goals.asr is not None:
        plot.add_hline(y=goals.asr, line=line)
    if (most := cost.wanted(goals)) is not None:
        plot.add_vline(x=most if linear else place(most), line=line)


def goal_words(goals: Goals, cost: Cost = PERPLEXITY) -> str:
    """The caption's part on the goals; empty where none is given."""
    found = [] if goals.asr is None else [f"ASR {percent(goals.asr)}"]
    if (most := cost.wanted(goals)) is not None:
        found.append(f"{cost.name} {cost.goal(most)}")
    return f" Dashed: the goals, {' and '.join(found)}." if found else ""


def cost_axis(
    plot: go.Figure, values: list[float], goals: Goals, linear: bool, cost: Cost = PERPLEXITY
) -> None:
    """Make the horizontal axis one of costs that holds some values.

    Args:
        plot: the drawing.
        values: costs to be seen, finite.
        goals: that of the cost is to be seen, too.
        linear: whether the axis is linear; else points are drawn at `stretch` of their value.
        cost: which of the two.
    """
    plot.update_xaxes(title_text=cost.axis)
    seen = [*values, 0.0, cost.wanted(goals) or 0.0]
    if linear:
        low, high = min(seen), max(max(seen), LEAST_RANGE)
        room = 0.08 * (high - low)
        plot.update_xaxes(range=[low - room, high + room], tickformat=cost.tickformat)
        return
    places = stretch(np.array([*seen, LEAST_RANGE]))
    room = 0.06 * float(places.max() - places.min())
    low, high = float(places.min()) - room, float(places.max()) + room
    ticks = _readable([t for t in cost.ticks if low <= place(t) <= high], high - low)
    plot.update_xaxes(
        range=[low, high],
        tickmode="array",
        tickvals=[place(t) for t in ticks],
        ticktext=[cost.tick(t) for t in ticks],
    )


def _readable(ticks: list[float], width: float) -> list[float]:
    """Ticks far enough apart to be read; those near zero come first."""
    kept: list[float] = []
    for tick in sorted(ticks, key=lambda t: (abs(t), -t)):
        if all(abs(place(tick) - place(other)) > 0.055 * width for other in kept):
            kept.append(tick)
    return sorted(kept)
