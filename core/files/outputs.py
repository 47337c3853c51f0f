"""Where commands may write: apart from what they read, and in place of plain files alone."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import RunError

Inputs = Sequence[tuple[str, Path | str | None]]
"""Option and what it names: a path, ``FILE:key``, or something that is no path."""
_LONGEST = 200
"""Most bytes of a name; file systems take 255."""


def out_path(out: Path) -> Path:
    """A path to write to as it is meant: ``a/b/..`` is ``a``, whether ``a/b`` is there or not.

    Raises:
        RunError: a name that is too long for a file system.
    """
    for part in out.parts:
        if len(os.fsencode(part)) > _LONGEST:
            raise RunError(
                f"the name {part[:40]!r}... in --out is over {_LONGEST} bytes long; give a shorter "
                "one"
            )
    return out.resolve() if ".." in out.parts else out


def run_path(name: str, out: Path | None) -> Path:
    """The folder of a run: `out` as it is meant, else ``runs/<name>``.

    Raises:
        RunError: a name with path parts, over 80 characters, or of other than letters, digits,
            dot, dash and underscore; a folder name that no file system takes.
    """
    if out is not None:
        return out_path(out)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name):
        raise RunError(
            f"the run name {name[:40]!r} is not one: use up to 80 letters, digits, '.', '-', '_', "
            "or give a folder with --out"
        )
    return Path("runs") / name


def check_folder_out(out: Path) -> None:
    """Raise where a folder is to be made or filled and something else is there.

    Raises:
        RunError: a file, a link that leads nowhere, a pipe or a device; nothing there is fine.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise RunError(f"{out} is {_kind(out)}; give a folder with --out")


def check_file_out(path: Path) -> None:
    """Raise where a file is to be written and something else is there.

    Raises:
        RunError: a folder, a link, a pipe, a socket or a device; nothing there is fine.
    """
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise RunError(
            f"{path} is {_kind(path)}, which is never replaced; move it away, or give another --out"
        )


def _kind(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "a link" if path.exists() else "a link that leads nowhere"
    plain = "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else ""
    return plain or "a pipe, a socket or a device"


def check_apart(out: Path, inputs: Inputs, *, rows: Inputs = ()) -> None:
    """Raise where a command would write over what it reads.

    Args:
        out: the folder that is written, there or not.
        inputs: what is read.
        rows: what is read of rows; a folder is read with all that is below it.

    Raises:
        RunError: an input lies in the folder, or the folder in a folder of rows; names both.
    """
    root = out.resolve()
    for option, given in (*inputs, *rows):
        for path in _paths(given):
            if any(root in (real, *real.parents) for real in _real(path)):
                how = "is" if path.resolve() == root else "lies in"
                raise RunError(
                    f"{option} {given} {how} {out}, which this command writes and may start over; "
                    "give another --out"
                )
    for option, given in rows:
        for path in _paths(given):
            if path.is_dir() and path.resolve() in root.parents:
                raise RunError(
                    f"{out} lies in {option} {given}, which is read with all that is below it; "
                    "give another --out"
                )


def _paths(given: Path | str | None) -> Iterator[Path]:
    text = str(given or "")
    for name in (text, text.rpartition(":")[0]):
        if name and os.path.exists(name):
            yield Path(name)


def _real(path: Path) -> Iterator[Path]:
    """Where a path leads, and where the files of a folder do."""
    yield path.resolve()
    for entry in path.iterdir() if path.is_dir() else ():
        if entry.is_file():
            yield entry.resolve()
