"""Tables of numbers on a terminal of any width: names are folded, numbers are never cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.segment import SegmentLines
from rich.table import Table

from ...core.console import cell
from ...core.text import one_line

NARROWEST = 16
"""Heads are folded to this, and names no further, unless they are shorter."""


def folded(head: str) -> str:
    """A long head on several lines, so that its column of numbers stays narrow."""
    return "\n".join(wrap(head, NARROWEST)) or head


@dataclass(frozen=True)
class Numbers:
    """A table of names and numbers."""

    heads: Sequence[str]
    """Of the columns, names first."""
    rows: Sequence[Sequence[str]]
    """The cells, each of one line or several; brackets in them are text."""
    names: int = 1
    """How many columns, the first ones, are repeated beside all the others."""
    folds: int = 0
    """Which of them is folded where there is no room."""
    title: str = ""
    """Above it."""
    caption: str = ""
    """Below it."""
    left: bool = False
    """Whether title and first column begin at the left edge."""

    def print(self, console: Console) -> None:
        """Print it; columns that do not fit beside the names come in a further table below."""
        parts: list[list[int]] = [[]]
        longest = self._width(self.folds)
        least = min(longest, NARROWEST)
        for column in range(self.names, len(self.heads)):
            if parts[-1] and _wide(self._table([*parts[-1], column], least)) > console.width:
                parts.append([])
            parts[-1].append(column)
        for part in parts:
            room = least + console.width - _wide(self._table(part, least))
            table = self._table(part, max(least, min(longest, room)))
            table.title = cell(self.title) if self.title and part is parts[0] else None
            table.caption = cell(self.caption) if self.caption and len(parts) == 1 else None
            options = console.options.update(width=max(console.width, _wide(table)))
            lines = console.render_lines(table, options, pad=False)
            console.print(SegmentLines(lines, new_lines=True), soft_wrap=True, end="")
        if self.caption and len(parts) > 1:  # as wide as the terminal, not as the last part
            console.print(cell(self.caption), style="table.caption", highlight=False)
        console.print()

    def _width(self, column: int) -> int:
        """The longest line of a column."""
        texts = (self.heads[column], *(row[column] for row in self.rows))
        return max(len(one_line(line)) for text in texts for line in text.split("\n"))

    def _table(self, part: Sequence[int], names: int) -> Table:
        """Some columns of numbers beside names of a width."""
        table = Table(
            padding=(0, 1, 0, 0),
            box=SIMPLE_HEAD,
            title_justify="left" if self.left else "center",
            show_edge=not self.left,
            pad_edge=not self.left,
        )
        chosen = [*range(self.names), *part]
        for i in chosen:
            table.add_column(
                cell(self.heads[i]),
                justify="left" if i < self.names else "right",
                width=names if i == self.folds else self._width(i),
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*(cell(row[i]) for i in chosen))
        return table


def _wide(table: Table) -> int:
    """How many characters a table with columns of given widths takes."""
    return Console(width=10_000).measure(table).maximum
