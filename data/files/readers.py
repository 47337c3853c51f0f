"""Where published data lies: files of many kinds, folders and hub ids, as one stream of objects."""

import bz2
import gzip
import io
import lzma
import os
import stat
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ...core.errors import DataError
from ...core.progress import report
from ..formats.badrows import RowError
from .columnar import MARKS, from_columns
from .folders import PACKED, chosen_part
from .hub import hub_rows, is_hub_id
from .texts import DataRecord, Item, TextFile, from_braces, from_list, from_table, record
from .utf8 import check_start

__all__ = ["DataRecord", "is_source", "items", "records"]

UNPACKERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
"""The first bytes of a packed file -> what unpacks it."""
_OTHERS = {
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it first",
    b"FEA1": "Feather of version 1; save it as version 2 or as Parquet",
    b"version https://git-lfs": "a git-lfs pointer, not the data; fetch it with git lfs pull",
}
"""The first bytes of files that cannot be read -> what they are."""
PROGRESS_AFTER = 2.0
"""Seconds of reading after which progress is reported."""


def records(source: str) -> Iterator[DataRecord]:
    """The objects of a file, a folder or a data set on the hub, streamed in their order.

    Raises:
        DataError: as `items`, and for a row that cannot be read.
    """
    for item in items(source):
        if isinstance(item, RowError):
            raise item
        yield item


def items(source: str, notes: Counter[str] | None = None) -> Iterator[Item]:
    """The objects of a file, a folder or a data set on the Hugging Face hub, streamed in order.

    A path that exists is a file, known by its content: Parquet, Arrow (file and stream), a JSON
    list, a JSON object with one list of objects, one JSON object a line; with the suffix ``.csv``,
    ``.tsv`` or ``.tab`` a table whose first line names its columns; any of them packed with gzip,
    bzip2 or xz. A folder is a data set of such files. ``PATH:NAME`` names a split of a folder or a
    key of a JSON object. Anything else that reads ``owner/name``, ``owner/name:split`` or
    ``owner/name/config:split`` is a data set on the hub. Nothing is read before the first object is
    requested, and no more than a buffer and a batch of objects is held.

    Args:
        source: the path or the hub id.
        notes: counts, by a sentence for people, of what was chosen among several.

    Yields:
        Objects; a `RowError` for one that cannot be read while those after it can.

    Raises:
        DataError: no such source, or one that cannot be read to its end as what it is: another
            encoding than UTF-8, NUL bytes, broken JSON, CSV or Parquet, no rows, a file that
            changed meanwhile, a hub that is out of reach.
    """
    path, part = _located(source)
    if path is None:
        stream = _from_hub(source)
    elif path.is_dir():
        stream = _from_folder(path, part, Counter() if notes is None else notes)
    else:
        stream = _from_file(path, str(path) if part else source, part)
    found = False
    for item in stream:
        found = True
        yield item
    if not found:
        raise DataError(f"{source} holds no rows; each row is one object")


def is_source(folder: Path) -> bool:
    """Whether a folder is a data set of its own, and not what ``loratomy data build`` wrote."""
    try:
        return bool(chosen_part(folder, ""))
    except DataError:
        return False


def _located(source: str) -> tuple[Path | None, str]:
    """The file or folder that is meant, and which part of it; None for a hub id."""
    path, part = Path(source), ""
    before, colon, after = source.rpartition(":")
    try:
        if colon and before and not path.exists() and Path(before).exists():
            path, part = Path(before), after
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if not is_hub_id(source):
            raise DataError(
                f"no such data file: {source!r}; give a path, or the owner/name of a hub data set"
            ) from error
        return None, ""
    except OSError as error:
        raise DataError(f"cannot read the data file {source}: {error.strerror}") from error
    if not source:
        raise DataError(f"{source!r} is a folder; give one of its files")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        # a pipe: reading it may wait for ever and ends no second time
        raise DataError(f"{source!r} is no regular file; write the data to a file first")
    return path, part


def _from_folder(folder: Path, part: str, notes: Counter[str]) -> Iterator[Item]:
    label, files = chosen_part(folder, part)
    notes[f"data set in a folder: {label!r} of {folder}, {len(files)} file(s)"] += 1
    number = 0
    for path in files:
        for item in _from_file(path, str(path), ""):
            number += 1
            if isinstance(item, RowError):
                yield item
            else:
                yield DataRecord(number=number, where=item.where, value=item.value)


def _from_file(path: Path, name: str, part: str) -> Iterator[Item]:
    try:
        with path.open("rb") as file:
            opened = os.fstat(file.fileno())
            try:
                for item in _with_progress(_contained(file, path.name, name, part), file, name):
                    if isinstance(item, RowError):  # half a row that somebody rewrites
                        _check_same(opened, path, name, item)
                    yield item
            except DataError as error:
                # half a file that somebody rewrites looks broken; the rewriting is the cause
                _check_same(opened, path, name, error)
                raise
            _check_same(opened, path, name)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{name} is packed and broken or cut off ({error})") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot read the data file {name}: {reason}") from error


def _with_progress(stream: Iterator[Item], file: BinaryIO, name: str) -> Iterator[Item]:
    """The items, with progress in MB of the file where reading takes its time."""
    size, began, shown = os.fstat(file.fileno()).st_size >> 20, time.monotonic(), False
    for count, item in enumerate(stream, 1):
        yield item
        if count % 1000 == 0 and size and time.monotonic() - began > PROGRESS_AFTER:
            shown = True
            report(f"reading {name} (MB)", min(file.tell() >> 20, size - 1), size)
    if shown:
        report(f"reading {name} (MB)", size, size)


def _contained(file: BinaryIO, file_name: str, name: str, part: str) -> Iterator[Item]:
    head = file.read(32)
    for mark, unpack in UNPACKERS.items():
        if head.startswith(mark):
            file.seek(0)
            inner = io.BufferedReader(unpack(file))
            if any(inner.peek(8).startswith(again) for again in UNPACKERS):
                raise DataError(f"{name} is packed twice; unpack it once")
            lower = file_name.lower()
            bare = next((lower[: -len(end)] for end in PACKED if lower.endswith(end)), lower)
            return _contained(inner, bare, name, part)  # pyright: ignore
    for mark, kind in _OTHERS.items():
        if head.startswith(mark):
            raise DataError(f"{name} is {kind}")
    if kind := MARKS.get(head[:4]):
        return from_columns(file, name, kind)
    file.seek(0)
    first, start = check_start(file, name)
    text, suffix = TextFile(file, name, start), Path(file_name).suffix.lower()
    if suffix in (".csv", ".tsv", ".tab"):
        return from_table(text, tab=suffix != ".csv")
    if first == b"[":
        return from_list(text)
    if first == b"{":
        return from_braces(text, part)
    raise DataError(
        f"{name} starts with {ascii(first)[1:]}, neither a JSON list ([) nor JSON lines ({{), and "
        "is no Parquet or Arrow file; a table needs the suffix .csv or .tsv"
    )


def _check_same(
    opened: os.stat_result, path: Path, name: str, cause: Exception | None = None
) -> None:
    try:
        now = path.stat()
        same = (now.st_size, now.st_mtime_ns, now.st_ino, now.st_dev) == (
            opened.st_size,
            opened.st_mtime_ns,
            opened.st_ino,
            opened.st_dev,
        )
    except FileNotFoundError:
        same = False
    if not same:
        raise DataError(
            f"{name} changed while it was read; read it again when it is at rest"
        ) from cause


def _from_hub(source: str) -> Iterator[Item]:
    for number, (label, value) in enumerate(hub_rows(source), 1):
        yield record(value, number, f"{label}, row {number}")
