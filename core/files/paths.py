"""Where things of a run may be: every path below its folder is made and checked here.

A run folder may come from somebody else. What it holds is data: a link in it could lead to any
other folder, a name in its manifest anywhere, a pipe would be waited for.
"""

import os
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import RunError
from ..text import visible

DEPTH = 32
"""Most folders in each other below an entry of a run; what trackers write is the deepest."""
REPORT = "report.html"
"""The only page that a run holds under a name of its own."""
_PART = re.compile(r"(\.partial|[A-Za-z0-9_][A-Za-z0-9._-]{0,199})")


def is_name(name: str) -> bool:
    """Whether a text names something below a run: plain parts joined by slashes."""
    return all(_PART.fullmatch(part) for part in name.split("/"))


def inside(root: Path, name: str) -> Path:
    """The path of something in a run, by its name below the run's folder.

    Args:
        root: the run's folder, a link or not, as its user gave it.
        name: of a stage or a file, e.g. ``adapters/clean``; it need not be there.

    Raises:
        RunError: the name leaves the folder or is none, or a part of the path is a link, a pipe
            or a device.
    """
    if not is_name(name):
        raise RunError(
            f"{root}: {name!r} names nothing in a run: letters, digits, '.', '-', '_', parts "
            "joined by '/'; remake the run with --fresh"
        )
    path = root
    for part in name.split("/"):
        path = path / part
        check_plain(path)
    return path


def check_plain(path: Path) -> None:
    """Raise where something other than a plain file or a folder lies at a path of a run.

    Raises:
        RunError: a link, a pipe, a socket or a device; nothing there is fine.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    _check(path, mode)


def _check(path: Path, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise RunError(
            f"{path} is a link (to {os.readlink(path)}), and a run holds none: nothing is read, "
            f"changed or removed through it; remove the link, or copy what it leads to in its place"
        )
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise RunError(f"{path} is a pipe, a socket or a device, and a run holds none; remove it")


def check_utf8(folder: Path, what: str) -> None:
    """Raise where a folder's name is not UTF-8.

    Args:
        folder: holds, or will hold, safetensors.
        what: it is, in words.

    Raises:
        RunError: with the name, control characters and odd bytes written out.
    """
    try:
        str(folder).encode("utf-8")
    except UnicodeEncodeError as error:
        raise RunError(
            f"the {what}'s name {visible(str(folder))!r} is not UTF-8, and safetensors opens no "
            "file below such a name; rename it"
        ) from error


def check_tree(
    root: Path, names: Collection[str], *, linking: Collection[str] = (), own: Collection[str] = ()
) -> None:
    """Raise where a run holds anything but plain files and folders.

    Args:
        root: the run's folder.
        names: what to look at in it, with all that is below; nothing there is fine.
        linking: those of them that may hold links which stay in the run's folder.
        own: those of them that are written in place, so that no file may have a second name.

    Raises:
        RunError: a link, a pipe, a socket, a device, or a file with a second name in `own`.
    """
    real = os.path.realpath(root)
    for name in names:
        for path, status in _everything(root / name):
            link = name in linking and stat.S_ISLNK(status.st_mode)
            if link and os.path.commonpath([real, os.path.realpath(path)]) == real:
                continue
            _check(path, status.st_mode)
            if name in own and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                raise RunError(
                    f"{path} is the same file as another one (a hard link), which would be "
                    "changed with it; remove it, or put a copy in its place"
                )


def _everything(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """A path and all below it that is there, links not followed."""
    waiting = [(path, 0)]
    while waiting:
        here, depth = waiting.pop()
        try:
            status = here.lstat()
            entries = sorted(os.listdir(here)) if stat.S_ISDIR(status.st_mode) else []
        except (FileNotFoundError, NotADirectoryError):  # another process ends its work meanwhile
            continue
        yield here, status
        if entries and depth == DEPTH:
            raise RunError(
                f"{here} lies {DEPTH} folders deep, and nothing of a run does; remove it"
            )
        waiting += [(here / entry, depth + 1) for entry in reversed(entries)]


def everything_below(folder: Path) -> list[Path]:
    """Paths of all files and folders below a folder, each before what it holds."""
    return [path for path, _ in _everything(folder) if path != folder]


def files_below(folder: Path) -> list[str]:
    """Names of all files below a folder, ``a/b``, sorted; a link counts as a file."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path, status in _everything(folder)
        if not stat.S_ISDIR(status.st_mode) and path != folder
    )


def inside_or_cached(path: Path, real: Path) -> bool:
    """Whether a link stays in its folder, or in the hub's cache leads to its repository's blobs."""
    folder = Path(os.path.realpath(path.parent))
    caches = (p.parent for p in folder.parents if p.name == "snapshots")
    blobs = (cache / "blobs" for cache in caches if cache.name.startswith("models--"))
    return any(real.is_relative_to(place) for place in (folder, *blobs))
