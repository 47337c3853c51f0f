"""Rows that cannot be read: named one by one, and counted by kind where they are left out."""

import re
from collections import Counter
from dataclasses import dataclass, field

from ...core.errors import DataError

SHOWN = 5
"""Bad rows that are described."""


class RowError(DataError):
    """One row that cannot be read; the rows after it can."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")
        self.what = what

    @property
    def kind(self) -> str:
        """What is wrong without the values, so that like rows are counted together."""
        first = re.split(r"; | \(|: |, which|, found", self.what)[0]
        return re.sub(r"\d+", "N", first)[:80]


@dataclass
class BadRows:
    """What was left out of a file: how many rows, of what kinds, the first of them in words."""

    may_be_all: bool = False
    """Whether a file of which no row can be read is in order."""
    first: list[str] = field(default_factory=list)
    """The first `SHOWN` of them."""
    numbers: dict[str, list[int]] = field(default_factory=dict)
    """Kind -> the numbers of its rows."""
    examples: dict[str, str] = field(default_factory=dict)
    """Kind -> the first row of it in words."""

    def add(self, error: RowError, number: int) -> None:
        """Count a row."""
        if len(self.first) < SHOWN:
            self.first.append(str(error))
        self.numbers.setdefault(error.kind, []).append(number)
        self.examples.setdefault(error.kind, error.what)

    def clear(self) -> None:
        """Forget all, before the file is read again."""
        self.first.clear()
        self.numbers.clear()
        self.examples.clear()

    def count(self) -> int:
        """How many rows were left out."""
        return sum(map(len, self.numbers.values()))

    def kinds(self) -> str:
        """The kinds with their counts, the most frequent first."""
        return shown_kinds(Counter({kind: len(rows) for kind, rows in self.numbers.items()}))


def shown_kinds(kinds: Counter[str]) -> str:
    """Kinds of bad rows with their counts, the most frequent first, cut to a line."""
    listed = [f"{count} x {kind}" for kind, count in kinds.most_common(4)]
    more = len(kinds) - len(listed)
    return ", ".join(listed) + (f" and {more} more kinds" if more > 0 else "")
