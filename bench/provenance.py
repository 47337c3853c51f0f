"""Where a bench comes from: the commands that made it, code, machine; kept in its folder."""

import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.files.atomic import write_atomic
from ..core.files.jsonfiles import MANIFEST, Outside, checked, read_json
from ..core.records.bench import BenchRow
from ..core.records.io import SCHEMA, dumps
from ..core.records.results import Setting
from ..core.runs.provenance import code_digest, machine, versions

FILE = "bench.json"
_REMEDY = "remove it and run the bench again"


class _Pieces(Outside):
    made_by: list[dict[str, Any]]


def commit_of(file: Path) -> str:
    """The commit that a source file is of, and whether the source differs from it; else ``none``.

    A file that git does not track is of no commit, in whatever checkout its folder is.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(file.parent), *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "--", file.name) is None:
        return "none"
    if not (head := git("rev-parse", "HEAD")):
        return "none"
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{head} with changes" if changed else head


def read_pieces(out: Path) -> list[dict[str, Any]]:
    """The commands that a bench was made with so far, each with code, versions and machine.

    Raises:
        RunError: the record cannot be read.
    """
    path = out / FILE
    if not path.exists():
        return []
    body = read_json(path, most=MANIFEST, remedy=_REMEDY)
    return checked(_Pieces, body, path, remedy=_REMEDY).made_by


def note_piece(out: Path, command: str, about: Mapping[str, Any]) -> None:
    """Add a command to those that a bench was made with; the same one going on is there once.

    Args:
        out: the bench's folder.
        command: as it can be given again.
        about: its options, as JSON-able values.
    """
    piece = {
        "command": command,
        **about,
        "commit": commit_of(Path(__file__)),
        "code": code_digest(),
        "machine": machine(),
        "versions": versions(),
    }
    pieces = read_pieces(out)
    if not any({**piece, "started": one.get("started")} == one for one in pieces):
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        pieces.append({**piece, "started": started})
        write_atomic(out / FILE, dumps({"schema": SCHEMA, "made_by": pieces}))


def provenance(
    pieces: Sequence[Mapping[str, Any]],
    rows: Sequence[BenchRow],
    made_by: Iterable[tuple[str, str]],
) -> tuple[Setting, ...]:
    """What the page says of where its numbers come from.

    Args:
        pieces: the commands that made it.
        rows: of its table.
        made_by: machine and versions that the cells themselves record, name and value.
    """
    facts: dict[str, dict[str, None]] = {"command": {}, "commit": {}, "code": {}, "started": {}}
    for piece in pieces:
        for name, values in facts.items():
            values[str(piece.get(name, "not recorded"))] = None
    for name, value in sorted(made_by):
        facts.setdefault(name, {})[value] = None
    facts["cells"] = dict.fromkeys(row.cell for row in rows)
    facts["seeds"] = dict.fromkeys(str(seed) for seed in sorted({row.seed for row in rows}))
    facts["entries"] = dict.fromkeys(row.entry for row in rows if not row.control_for)
    return tuple(
        Setting(name=name, value=(" · " if name == "command" else ", ").join(values))
        if values
        else Setting(name=name, value="not recorded")
        for name, values in facts.items()
    )
