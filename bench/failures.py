"""What a bench could not make, kept beside its cells until it is made or wanted again."""

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import RunError
from ..core.files.atomic import write_atomic
from ..core.files.jsonfiles import MANIFEST, Outside, checked, read_json
from ..core.records.io import dumps
from .cells import Cell
from .entries import Failure, Failures

FOLDER = "left-out"


class _Note(Outside):
    why: str
    tried: bool


class _Notes(Outside):
    entries: dict[str, dict[str, _Note]]


WHOLE = ""
"""In the place of an entry: the whole cell."""


def read_notes(out: Path, cell: Cell) -> Failures:
    """What could not be made in a cell; empty where all of it was.

    Raises:
        RunError: the notes cannot be read.
    """
    path = _path(out, cell)
    if not path.exists():
        return {}
    remedy = "remove it and run the bench again"
    body = {"entries": read_json(path, most=MANIFEST, remedy=remedy)}
    found = checked(_Notes, body, path, remedy=remedy).entries
    return {
        entry: {name: Failure(note.why, note.tried) for name, note in names.items()}
        for entry, names in found.items()
    }


def write_notes(out: Path, cell: Cell, made: Failures) -> None:
    """Keep what failed, in place of what was noted of the same entries before.

    Args:
        out: the bench's folder.
        cell: where it failed.
        made: for every entry that was tried what failed of it; nothing, where all was made.
    """
    try:
        before = read_notes(out, cell)
    except RunError:
        before = {}  # what cannot be read is replaced by what is known now
    kept = {entry: names for entry, names in {**before, **made}.items() if names}
    path = _path(out, cell)
    if kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, dumps(kept))
    else:
        path.unlink(missing_ok=True)


def note_whole(out: Path, cell: Cell, why: str) -> None:
    """Keep why a cell as a whole could not be made; empty: it was."""
    write_notes(out, cell, {WHOLE: {WHOLE: Failure(why, False)} if why else {}})


def in_words(missing: Sequence[tuple[str, str, str]], *, cells: int, named: int = 6) -> list[str]:
    """A line for each thing that is not there and its reason, with the cells where that is so.

    Args:
        missing: cell, what (empty: all of it) and why.
        cells: how many were wanted.
        named: cells that a line names, at most.
    """
    places: dict[tuple[str, str], list[str]] = {}
    for cell, what, why in missing:
        places.setdefault((what, why), []).append(cell)
    lines = []
    for (what, why), where in places.items():
        more = f" and {len(where) - named} more" if len(where) > named else ""
        count = f" in {len(where)} of {cells} cells" if cells > 1 else ""
        head = f"{what}: {why}" if what else why
        lines.append(f"{head}{count}: {', '.join(where[:named])}{more}")
    return lines


def _path(out: Path, cell: Cell) -> Path:
    return out / FOLDER / f"{cell.key}.json"
