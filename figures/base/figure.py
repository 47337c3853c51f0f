"""What a figure is, and the registry of everything that draws one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ...core.records.results import Comparison, Curves, Operation, Provenance, RunRecords
from ...core.registry import Registry

_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure with its title, caption and explanation."""

    id: str
    """Permanent name, ``[a-z0-9-]+``; plotly does not escape it, so nothing else is allowed."""
    title: str
    """A short title, plain text."""
    plot: go.Figure
    """The drawing."""
    caption: str
    """What it shows, plain text."""
    how_to_read: str
    """How to read it, for someone who has not seen one before."""
    alt: str
    """One line for screen readers, with the actual numbers."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"figure id {self.id!r} is not made of [a-z0-9-]")

    @property
    def height(self) -> int:
        """Height of the drawing, layout pixels."""
        layout: Any = self.plot["layout"]
        return int(layout["height"] or 400)


FIGURES: Registry[Callable[[RunRecords], list[Figure]]] = Registry("figure")
"""Every function that draws, in the order of the report."""


def slug(text: str) -> str:
    """A figure id made of any text; ``x`` when nothing of it can be used."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "x"


def unique(name: str, taken: set[str]) -> str:
    """`name`, or the first of ``name-2``, ``name-3`` ... that is not taken; then it is."""
    candidate, count = name, 1
    while candidate in taken:
        count += 1
        candidate = f"{name}-{count}"
    taken.add(candidate)
    return candidate


def draw_record(record: Any) -> list[Figure]:
    """All figures that one record alone allows."""
    alone = RunRecords(
        provenance=Provenance(run="", command="", facts=()),
        trigger="",
        target="",
        curves=(record,) if isinstance(record, Curves) else (),
        comparison=record if isinstance(record, Comparison) else None,
        answers=(),
        analyses=(record,),
        operations=(record,) if isinstance(record, Operation) else (),
    )
    return draw(alone)


def draw(records: RunRecords) -> list[Figure]:
    """All figures that the records allow, in the order of the report."""
    return [figure for figures in draw_sections(records).values() for figure in figures]


def draw_sections(records: RunRecords) -> dict[str, tuple[Figure, ...]]:
    """The same by section of the report; empty where a section has no record to draw."""
    return {name: tuple(function(records)) for name, function in FIGURES.items()}
