"""What every record is: frozen fields, a data frame, a drawing, and its result in a line."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

C = TypeVar("C", bound=type)
SHOWN = 10
"""Rows of a frame that a notebook shows below the result."""
RECORDS: dict[str, type] = {}
"""Every class of records by its name, as files name it."""
_drawing: list[Callable[[Any], list[Any]]] = []


@dataclass_transform(frozen_default=True, kw_only_default=True)
def record(cls: C) -> C:
    """A class of records: a frozen dataclass with keyword arguments and slots."""
    made: Any = dataclass(frozen=True, slots=True, kw_only=True, repr=False)(cls)
    RECORDS[made.__name__] = made
    return made


class Record:
    """A frozen result."""

    __slots__ = ()

    def to_frame(self) -> "pd.DataFrame":
        """The record as a tidy table: one row an observation, one column a quantity."""
        from .frames import frame_of

        return frame_of(self)

    def figures(self) -> list[Any]:
        """Everything that can be drawn of it, each with title, caption and how to read it."""
        if not _drawing:
            raise RuntimeError("nobody draws: import loratomy first")
        return _drawing[-1](self)

    def plot(self) -> "go.Figure":
        """The first of its drawings.

        Raises:
            LoratomyError: nothing can be drawn of it.
        """
        from ..errors import LoratomyError

        drawn = self.figures()
        if not drawn:
            raise LoratomyError(f"nothing is drawn of {self!r}; see to_frame()")
        return drawn[0].plot

    def __repr__(self) -> str:
        """The result in a line."""
        from .lines import line_of

        return f"{type(self).__name__}: {line_of(self)}"

    def _repr_html_(self) -> str:
        """The result with the head of its table, for notebooks; text from outside is escaped."""
        frame = self.to_frame()
        more = f"<p>{len(frame)} rows, {SHOWN} shown</p>" if len(frame) > SHOWN else ""
        table = frame.head(SHOWN).to_html(index=False, float_format="{:.4g}".format)
        return f"<p>{html.escape(repr(self))}</p>{table}{more}"


def draw_with(draw: Callable[[Any], list[Any]]) -> None:
    """Set what draws records: a function from a record to its figures."""
    _drawing[:] = [draw]
