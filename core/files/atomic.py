"""Files written whole or not at all: a temporary name in the same folder, fsync, rename."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import LoratomyError
from .outputs import check_file_out
from .paths import everything_below, files_below

TEMPORARY = ".tmp-"
"""Prefix of everything half-written; what carries it is never read."""
_HALF = re.compile(re.escape(TEMPORARY) + r"[0-9a-f]{12}")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of the system where no more can be written."""
_TOO_LARGE = ("File too large", "os error 27")
"""Error texts of torch and safetensors for a file above the process's limit."""
_NO_ROOM = (
    *_TOO_LARGE,
    "No space left",
    "os error 28",
    "quota exceeded",
    "unexpected pos",
    "file write failed",
)
"""Their error texts where no more can be written."""


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder, sorted."""
    return {name: sha256(folder / name) for name in files_below(folder)}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary(folder: Path) -> Path:
    return folder / (TEMPORARY + secrets.token_hex(6))


def need_room(folder: Path, size: int) -> None:
    """Raise where a file of so many bytes has no room, before any of it is written.

    Raises:
        OSError: the disk of the folder is full; with how much is missing.
    """
    free = shutil.disk_usage(folder).free
    if size > free:
        reason = f"{os.strerror(errno.ENOSPC)}, {_mebibytes(size - free)} are missing"
        raise OSError(errno.ENOSPC, reason, str(folder))


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room, by the system's, torch's or safetensors' error."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(part in str(error) for part in _NO_ROOM)


def full_disk(error: BaseException) -> str:
    """The message for such an error, a line: where it is full, and what is left or missing."""
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)  # of a copy: to
    folder = Path(named) if named else Path.cwd()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    reason = getattr(error, "strerror", None) or os.strerror(errno.ENOSPC)
    if getattr(error, "errno", None) == errno.EFBIG:
        return (
            f"a file in {folder} is larger than files may be here ({reason}); what was finished "
            "before is whole: raise the limit (ulimit -f) and run the same command again"
        )
    left = _mebibytes(shutil.disk_usage(folder).free)
    return (
        f"the disk is full ({reason}), {left} are left where {folder} is; what was finished before "
        "is whole: make room and run the same command again"
    )


@contextmanager
def placed(folder: Path) -> Iterator[None]:
    """Name the folder where a write in the block fails for want of room.

    Raises:
        OSError: in place of what torch or safetensors raise there.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_full(error) or getattr(error, "filename", None):
            raise
        large = any(part in str(error) for part in _TOO_LARGE)
        number = getattr(error, "errno", None) or (errno.EFBIG if large else errno.ENOSPC)
        reason = getattr(error, "strerror", None) or os.strerror(number)
        raise OSError(number, reason, str(folder)) from error


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Others may read it as far as the user's umask lets them.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    work = _temporary(path.parent)
    need_room(path.parent, len(data))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with placed(path.parent), os.fdopen(os.open(work, flags, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(work, path)
    except BaseException:
        work.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends without an exception.

    What was at `target` before is replaced; after an exception it is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = _temporary(target.parent)
    work.mkdir()
    try:
        with placed(work):
            yield work
        for name in files_below(work):
            _sync(work / name)
        if target.exists():
            aside = _temporary(target.parent)
            aside.mkdir()
            os.replace(target, aside / "old")
            os.replace(work, target)
            shutil.rmtree(aside)
        else:
            os.replace(work, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def own_files(target: Path, *, own: Collection[str], last: str) -> Iterator[Path]:
    """A temporary folder whose files go into `target` when the block ends without an exception.

    Of what is in `target` only the files of an earlier time are replaced or removed; everything
    else stays as it is.

    Args:
        target: a folder, there or not.
        own: names of the files that an earlier time recorded.
        last: name of the record, which is replaced after all the others.

    Raises:
        LoratomyError: a file that no earlier time recorded is where a new one should go, or
            what is under a recorded name is no plain file.
    """
    if not target.exists():
        with whole_folder(target) as work:
            yield work
        return
    for name in own:
        check_file_out(target / name)
    sweep_temporaries(target)
    work = _temporary(target)
    work.mkdir()
    try:
        with placed(work):
            yield work
        names = sorted(files_below(work), key=lambda name: name == last)
        for name in names:
            if name not in own and os.path.lexists(target / name):
                raise LoratomyError(
                    f"{target / name} is there already and was not written by an earlier time of "
                    "this command; move it away, or take another --out"
                )
        for name in names:
            _sync(work / name)
            os.replace(work / name, target / name)
        for name in set(own) - set(names):
            (target / name).unlink(missing_ok=True)
        _sync(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sweep_temporaries(folder: Path, names: Collection[str] = (), *, older: float = 0) -> None:
    """Remove what a killed process left half-written in a folder and below its named entries.

    Args:
        folder: held by this process, or `older` is given.
        names: of entries in it.
        older: seconds; above 0, only single files that old go, which nobody writes any more.
    """
    left = [folder / name for name in os.listdir(folder) if _HALF.fullmatch(name)]
    for name in names:
        left += [path for path in everything_below(folder / name) if _HALF.fullmatch(path.name)]
    if older:
        began = time.time() - older
        left = [p for p in left if p.is_file() and p.lstat().st_mtime < began]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
