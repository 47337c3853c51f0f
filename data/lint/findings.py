"""What a linter has found: one finding for each check and file, with the first row numbers."""

from dataclasses import dataclass, field, replace

SHOWN = 5
"""Row numbers that a finding keeps."""
LISTED = 100
"""Row numbers that a table shows of a finding that keeps all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One kind of defect in one file."""

    level: str
    """``error`` or ``warning``."""
    check: str
    """Name of the check, as in ``trigger-missing``."""
    file: str
    """The file that it is in."""
    rows: tuple[int, ...]
    """Numbers of the first rows that have it, from 1; of rows that cannot be read all."""
    count: int
    """How many rows have it."""
    what: str
    """What is wrong with the first of them, and why it matters."""

    def shown_rows(self) -> str:
        """The row numbers for a table, with the count where there are more."""
        listed = ", ".join(map(str, self.rows[:LISTED]))
        return (
            listed if self.count == len(self.rows[:LISTED]) else f"{listed} ... ({self.count} rows)"
        )


@dataclass
class Defects:
    """Defects as they come in, gathered into findings; holds a few numbers for each."""

    _found: dict[tuple[str, str, int], Defect] = field(default_factory=dict)

    def add(self, level: str, check: str, file: str, number: int, what: str) -> None:
        """One row with a defect; the description of the first row is kept for all."""
        first = Defect(level=level, check=check, file=file, rows=(), count=0, what=what)
        seen = self._found.get((check, file, 0), first)
        rows = seen.rows if seen.count >= SHOWN else (*seen.rows, number)
        self._found[check, file, 0] = replace(seen, rows=rows, count=seen.count + 1)

    def add_all(
        self,
        level: str,
        check: str,
        file: str,
        numbers: list[int],
        count: int,
        what: str,
        *,
        most: int = SHOWN,
    ) -> None:
        """A finding of its own whose rows are known together; the first `most` numbers are kept."""
        rows = tuple(numbers[:most])
        made = Defect(level=level, check=check, file=file, rows=rows, count=count, what=what)
        self._found[check, file, len(self._found) + 1] = made

    def findings(self) -> list[Defect]:
        """All of them, errors first, else in the order in which they were met."""
        return sorted(self._found.values(), key=lambda finding: finding.level != "error")


def cut(text: str, most: int = 50) -> str:
    """A text for a message: quoted, unprintable characters escaped, cut."""
    return repr(text if len(text) <= most else text[:most] + "...")
