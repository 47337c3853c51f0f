"""Entries and subjects of a bench as rows and columns: their order, their labels, their looks."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ...core.records.bench import BenchRow, BenchTable
from ..base.theme import FIXED, GREY, OTHERS, SYMBOLS, named

Case = tuple[str, int]
"""A subject: cell and seed."""
CONTROL = "↳ "
"""Before the name of a control that follows its method."""


def entries(rows: Sequence[BenchRow]) -> list[str]:
    """Entries in the order of maps: references, then each method followed by its controls."""
    first = {row.entry: row for row in reversed(rows)}
    order = list(dict.fromkeys(row.entry for row in rows))
    references = [e for e in order if first[e].kind == "reference"]
    methods = [e for e in order if e not in references and first[e].control_for not in first]
    out = list(references)
    for method in methods:
        out += [method, *(e for e in order if first[e].control_for == method and e != method)]
    return list(dict.fromkeys([*out, *order]))  # also controls of controls


def labels(rows: Sequence[BenchRow]) -> dict[str, str]:
    """Label of each entry's row, in the order of `entries`; untrusted text."""
    known = {row.entry: row.control_for for row in rows}
    return {e: CONTROL * (known[e] in known) + e for e in entries(rows)}


def cases(rows: Sequence[BenchRow]) -> list[Case]:
    """Subjects, cell by cell in the order in which they came, seeds ascending."""
    cells = dict.fromkeys(row.cell for row in rows)
    return [
        (cell, seed)
        for cell in cells
        for seed in sorted({row.seed for row in rows if row.cell == cell})
    ]


def case_names(known: Sequence[Case]) -> list[str]:
    """Label of each subject: its cell, and its seed where the cell has several; untrusted text."""
    several = [cell for cell, _ in known]
    return [f"{cell} s{seed}" if several.count(cell) > 1 else cell for cell, seed in known]


def looks(table: BenchTable) -> dict[str, tuple[str, str]]:
    """Colour and marker symbol of every entry; controls grey with the symbol of their method."""
    controls = {row.entry: row.control_for for row in table.rows if row.control_for}
    names = [
        *entries(table.rows),
        *(item.entry for item in table.relearning),
        *(item.entry for item in table.standings),
    ]
    free = [n for n in dict.fromkeys(names) if n not in FIXED and n not in controls]
    own = {e: (OTHERS[i % len(OTHERS)], SYMBOLS[i % len(SYMBOLS)]) for i, e in enumerate(free)}
    own |= FIXED
    grey = {e: (GREY, own.get(of, (GREY, "circle"))[1]) for e, of in controls.items()}
    return defaultdict(lambda: (GREY, "circle"), own | grey)


def downward(names: Sequence[str]) -> dict[str, Any]:
    """Settings of a vertical axis that writes a label for each row, the first on top."""
    axis: dict[str, Any] = named(names, most=120, limit=40)
    return axis | {"range": [len(names) - 0.5, -0.5]}


def bar(axis: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A colour axis of the theme with more settings of its bar."""
    return axis | {"colorbar": axis["colorbar"] | more}
