"""One process at a time in a folder, and who it is."""

import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunError
from ..files.atomic import write_atomic
from ..files.jsonfiles import read_json
from ..files.paths import check_plain
from ..records.io import dumps
from ..text import visible


@contextmanager
def held(
    folder: Path, *, name: str = ".lock", wait: float = 0, else_: str = "", command: str = ""
) -> Iterator[None]:
    """Hold a folder for this process, as long as the block lasts.

    Args:
        folder: it exists.
        name: of the lock in it; who holds it is written beside, in ``<name>.json``.
        wait: seconds to wait for another process that holds it.
        else_: what may be done besides waiting, for the error.
        command: what this process does, for the error of others; empty: its command line.

    Raises:
        RunError: another process holds it; names it, what it does, and for how long.
    """
    from filelock import FileLock, Timeout

    holder = folder / f"{name}.json"
    for path in (folder / name, holder):
        check_plain(path)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise RunError(f"{folder} is in use by {_who(holder)}; wait for its end{else_}") from error
    try:
        me = {"pid": os.getpid(), "host": platform.node(), "at": time.time()}
        does = command or shlex.join(["loratomy", *sys.argv[1:]])
        write_atomic(holder, dumps({**me, "command": visible(does)}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    """The process that holds a folder, in words."""
    try:
        found = read_json(holder)
    except RunError:  # it has just ended, or has not written yet
        return "another process"
    if not isinstance(found, dict):
        return "another process"
    line = f"process {found.get('pid', '?')} on {found.get('host', '?')} ({found.get('command')}"
    began = found.get("at")
    if isinstance(began, int | float) and 0 < began <= time.time():
        seconds = time.time() - began
        long = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        line += f", since {time.strftime('%H:%M:%S', time.localtime(began))}, for {long}"
    return line + ")"
