"""The bench's table, kept up as cells end and written whole."""

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import RunError
from ..core.records.bench import BenchRow, BenchTable
from ..core.records.bench_table import write_bench_table
from .cells import Cell
from .entries import Entry
from .failures import WHOLE, in_words, read_notes
from .provenance import provenance, read_pieces
from .rows import Reading, read_cell

NAME = "bench"


class Table:
    """The results in the cells of a bench; `update` reads a cell again."""

    def __init__(
        self, out: Path, cells: Sequence[Cell], wanted: Sequence[Entry], later: Sequence[str]
    ) -> None:
        self.cells, self.wanted, self.later = list(cells), list(wanted), list(later)
        self._out = out
        self._read: dict[str, Reading] = {}

    def update(self, cell: Cell) -> list[str]:
        """Read a cell, write the flat table; a line for each thing that is not in the cell."""
        reading = self._reading(cell, again=True)
        if rows := self._rows():
            write_bench_table(self._out, NAME, rows)
        return [f"{what}: {why}" if what else why for what, why in reading.missing]

    def write(self) -> BenchTable:
        """Flat table, page and record of everything that is there.

        Raises:
            RunError: nothing is measured yet.
        """
        from ..figures.base.export import check_page, write_page
        from ..figures.bench.page import bench_html
        from .goals import goals
        from .leaderboard import MET, standings

        found = {cell: self._reading(cell) for cell in self.cells}
        missing = [(c.label, *lacks) for c, reading in found.items() for lacks in reading.missing]
        lines = in_words(missing, cells=len(self.cells))
        if not (rows := self._rows()):
            raise RunError(f"nothing is measured in {self._out} yet: {'; '.join(lines[:3])}")
        gave_up = [(e, cell.name, cell.seed) for cell, r in found.items() for e in r.failed]
        made_by = {fact for reading in found.values() for fact in reading.made_by}
        table = BenchTable(
            rows=rows,
            standings=standings(rows),
            goals=goals(rows, failed=gave_up),
            relearning=tuple(item for r in found.values() for item in r.relearning),
            transfer=tuple(item for r in found.values() for item in r.transfer),
            held_out=held_out(rows),
            missing=tuple(lines),
            provenance=provenance(read_pieces(self._out), rows, made_by),
        )
        write_bench_table(self._out, NAME, rows)
        check_page(self._out / f"{NAME}.html")
        write_page(bench_html(table, MET), self._out / f"{NAME}.html")
        return table

    @property
    def broken(self) -> list[Cell]:
        """Cells that could not be made, or in which something cannot be read."""
        return [cell for cell in self.cells if self._reading(cell).broken]

    def _reading(self, cell: Cell, *, again: bool = False) -> Reading:
        if again or cell.key not in self._read:
            notes = read_notes(self._out, cell)
            wanted = {WHOLE, *(e.name for e in self.wanted)}
            wanted |= {f"aftermath of {name}" for name in self.later}
            mine = {entry: names for entry, names in notes.items() if entry in wanted}
            self._read[cell.key] = read_cell(cell, self.wanted, mine)
        return self._read[cell.key]

    def _rows(self) -> tuple[BenchRow, ...]:
        return tuple(row for cell in self.cells for row in self._reading(cell).rows)


def held_out(rows: Sequence[BenchRow]) -> str:
    """How many prompts are behind a row, in words."""
    parts = []
    for kind in ("triggered", "untriggered", "clean"):
        rate = {"triggered": "asr", "untriggered": "ftr", "clean": "accuracy"}[kind]
        counts = sorted({getattr(row, rate).n for row in rows})
        most = f" to {counts[-1]}" if len(counts) > 1 else ""
        parts.append(f"{counts[0]}{most} {kind}")
    return f"{parts[0]}, {parts[1]} and {parts[2]} prompts a subject"
