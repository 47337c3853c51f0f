"""What a bench could not make, kept beside its cells until it is made or asked for again."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import RunError
from ..core.files import write_atomic
from ..core.records import dumps
from .bench_cells import Cell
from .benched import Failure, Failures

FOLDER = "left-out"
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
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        return {
            entry: {name: Failure(str(f["why"]), bool(f["tried"])) for name, f in names.items()}
            for entry, names in body.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"cannot read {path} ({error}); remove it and run the bench again") from (
            error
        )


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
        cells: how many were asked for.
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
