"""Numbers with their names, units, intervals and counts, as hover texts write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .text import number, percent
from .theme import text


def written(value: Any, unit: str = "") -> str:
    """A number, or a value with its interval ``[3]``, and the unit; ``%`` is for fractions."""
    write = percent if unit == "%" else number
    shown, *ends = (write(float(v)) for v in np.atleast_1d(value))
    if ends and np.isfinite(value[1:]).any():
        shown += f" [{', '.join(end.removesuffix(' %') for end in ends)}]"
    return f"{shown} {unit}" if unit not in ("", "%") else shown


@dataclass(frozen=True, slots=True)
class Quantity:
    """Values of one name, to be drawn and to be written in hover texts."""

    name: str
    """Written before the value; safe for plotly."""
    values: np.ndarray
    """A number for each cell or point, a value with its interval (a last axis of 3), or a text."""
    unit: str = ""
    """Written behind the value; ``%`` writes fractions as percentages."""
    n: int = 0
    """What the value is measured on; 0 is not written."""

    def at(self, *place: int) -> str:
        """Name, value, interval, unit and count at one place, safe for plotly."""
        value = self.values[place]
        shown = text(value, limit=160) if isinstance(value, str) else written(value, self.unit)
        return f"{self.name} {shown}".strip() + (f", n = {self.n}" if self.n else "")


def hover(head: str, quantities: Sequence[Quantity], *place: int) -> str:
    """The hover text of one cell or point: a head, safe for plotly, and a line per quantity."""
    return "<br>".join([head, *(quantity.at(*place) for quantity in quantities)])
