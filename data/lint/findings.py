"""What a linter has found: one finding for each check and file, with the first row numbers."""

from dataclasses import dataclass, field

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

    _levels: dict[tuple[str, str], str] = field(default_factory=dict)
    _rows: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)
    _whats: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, level: str, check: str, file: str, number: int, what: str) -> None:
        """One row with a defect; the description of the first row is kept for all."""
        key = (check, file)
        if key not in self._levels:
            self._levels[key], self._whats[key] = level, what
            self._rows[key], self._counts[key] = [], 0
        if len(self._rows[key]) < SHOWN:
            self._rows[key].append(number)
        self._counts[key] += 1

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
        """A finding whose rows are known together; the first `most` of `numbers` are kept."""
        key = (check, f"{file}\0{len(self._levels)}")  # one for each pair of files
        self._levels[key], self._whats[key] = level, what
        self._rows[key], self._counts[key] = numbers[:most], count

    def findings(self) -> list[Defect]:
        """All of them, errors first, else in the order in which they were met."""
        found = [
            Defect(
                level=level,
                check=key[0],
                file=key[1].partition("\0")[0],
                rows=tuple(self._rows[key]),
                count=self._counts[key],
                what=self._whats[key],
            )
            for key, level in self._levels.items()
        ]
        return sorted(found, key=lambda finding: finding.level != "error")


def cut(text: str, most: int = 50) -> str:
    """A text for a message: quoted, unprintable characters escaped, cut."""
    return repr(text if len(text) <= most else text[:most] + "...")
