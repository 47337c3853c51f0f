"""Rows out of text files: JSON lists and documents, JSON lines, tables with some separator."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ...core.errors import DataError
from ..formats.badrows import RowError
from ..formats.columns import is_row
from .jsonlist import MAX_ROW, Decoder, Window, at_end, go_to, list_objects, members
from .utf8 import CheckedText

SEPARATORS = ",\t;|"
"""What may separate the fields of a table."""
LISTS = ("data", "rows", "examples", "instances", "items", "records")
"""Keys under which a document keeps its rows, where it holds more than one list of objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecord:
    """One object of a data source, as it was written."""

    number: int
    """Which row of the source this is, from 1."""
    where: str
    """The same for people: ``poison.json, row 3`` or ``poison.jsonl, line 7``."""
    value: dict[str, Any]
    """The object; in a table every value is text."""


Item = DataRecord | RowError
"""A row, or what is wrong with it."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """An open text file, known by its name."""

    file: BinaryIO
    """Its bytes."""
    name: str
    """As errors call it."""
    start: int
    """Where the text begins, after a UTF-8 mark."""

    def checked(self) -> io.BufferedReader:
        """Its bytes from the start, known to be UTF-8 without NUL."""
        return io.BufferedReader(CheckedText(self.file, self.name, self.start), 2**16)

    def window(self) -> Window:
        """Its text from the start."""
        return Window(io.TextIOWrapper(self.checked(), "utf-8", newline=""))


def record(value: Any, number: int, where: str) -> Item:
    """The record of a value, which must be an object."""
    if not isinstance(value, dict):
        return RowError(where, f"expected a JSON object, found {type(value).__name__}")
    return DataRecord(number=number, where=where, value=value)


def from_list(text: TextFile) -> Iterator[Item]:
    """The objects of a file that is one JSON list."""
    window, number = text.window(), 0
    for number, value in enumerate(list_objects(window, text.name), 1):
        yield _listed(value, number, text.name)
    at_end(window, text.name, number + 1)


def _listed(value: dict[str, Any] | RowError, number: int, name: str) -> Item:
    if isinstance(value, RowError):
        return value
    return DataRecord(number=number, where=f"{name}, row {number}", value=value)


def from_braces(text: TextFile, part: str) -> Iterator[Item]:
    """The objects of a file that begins with one: JSON lines, or a document."""
    if part or _is_document(text):
        return _from_document(text, part)
    return from_lines(text)


def _is_document(text: TextFile) -> bool:
    """Whether an object goes over several lines, or holds its rows in a list."""
    text.file.seek(text.start)
    lines: list[bytes] = []
    while len(lines) < 2 and (line := text.file.readline(MAX_ROW + 1)):
        if line.strip():
            lines.append(line.strip())
    try:
        value = dict(json.loads(lines[0]))
    except (ValueError, RecursionError):
        return lines[0].endswith((b"{", b"[", b",", b":")) and not _is_object(lines[1:])
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    objects = len(value) > 1 and all(isinstance(v, dict) for v in value.values())
    return len(lines) == 1 and (bool(lists) or objects) and not is_row(value)


def _is_object(lines: list[bytes]) -> bool:
    try:
        return bool(lines) and isinstance(json.loads(lines[0]), dict)
    except (ValueError, RecursionError):
        return False


def _from_document(text: TextFile, part: str) -> Iterator[Item]:
    """The rows in the one list of objects of a document, or objects that follow each other."""
    window = text.window()
    try:
        found = members(window)
        key = part or _list_key(found)
        if part and found.get(part) != "rows":
            raise DataError(f"no list of objects under {part!a}; the keys are {_keys(found)}")
        if not key:
            yield from _one_by_one(text)
            return
        if window.next():
            raise DataError(f"broken JSON (more text after the object: {window.seen()})")
        window = text.window()
        window.next()
        go_to(window, key)
    except RowError:
        raise
    except DataError as error:
        raise DataError(f"{text.name}: {error}") from error.__cause__
    name = f"{text.name}, {repr(key[:40])[1:-1]}"
    for number, value in enumerate(list_objects(window, name), 1):
        yield _unwrapped(_listed(value, number, name))


def _unwrapped(item: Item) -> Item:
    """The row in an answer of the hub's viewer, which numbers its rows."""
    if isinstance(item, DataRecord) and {"row_idx", "row"} <= item.value.keys():
        return record(item.value["row"], item.number, item.where)
    return item


def _list_key(found: dict[str, str]) -> str:
    """The key with the rows; empty where the object is a row itself."""
    lists = [key for key, kind in found.items() if kind == "rows"]
    if is_row(found) and not any(key in LISTS for key in lists):
        return ""
    usual = [key for key in lists if key in LISTS]
    if len(lists) > 1 and len(usual) != 1:
        raise DataError(
            f"holds {len(lists)} lists of objects, {_keys(lists)}; say which with a colon, as in "
            f"FILE:{repr(lists[0][:40])[1:-1]}"
        )
    if lists:
        return (usual or lists)[0]
    if len(found) > 1 and set(found.values()) == {"object"}:
        raise DataError(
            f"one object with an object under each of the keys {_keys(found)}; save its rows as a "
            "list (pandas: orient='records')"
        )
    return ""


def _keys(found: Any) -> str:
    shown = [key[:40] for key in found][:8]
    return f"{shown}" + (f" and {len(found) - 8} more" if len(found) > 8 else "")


def _one_by_one(text: TextFile) -> Iterator[Item]:
    """Objects over several lines that follow each other without a list around them."""
    window, number = text.window(), 1
    try:
        while window.next():
            where = f"{text.name}, row {number}"
            item = record(window.take(), number, where)
            if reason := window.decoder.problem():
                item = RowError(where, reason)
            yield item
            number += 1
    except DataError as error:
        raise DataError(f"{text.name}, row {number}: {error}") from error.__cause__


def from_lines(text: TextFile) -> Iterator[Item]:
    """One object a line; a line that is none, or no text, leaves the others in order."""
    text.file.seek(text.start)
    number = line_number = 0
    place, decoder = text.start, Decoder()
    while line := text.file.readline(MAX_ROW + 1):
        line_number += 1
        where = f"{text.name}, line {line_number}"
        if len(line) > MAX_ROW:
            raise DataError(f"{where}: longer than {MAX_ROW} bytes; JSONL is one object a line")
        if line.strip():
            number += 1
            yield _line(line, number, where, place, decoder)
        place += len(line)


def _line(line: bytes, number: int, where: str, place: int, decoder: Decoder) -> Item:
    if (at := line.find(b"\0")) >= 0:
        reason = f"byte {place + at} of the file contains a NUL byte; is this a text file?"
        return RowError(where, reason)
    try:
        value = decoder.whole(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = f"byte {place + error.start} of the file is not UTF-8; save it as UTF-8"
        return RowError(where, reason)
    except RecursionError:
        return RowError(where, "nested too deep to read")
    except ValueError as error:
        reason = f"not a JSON object ({error}); each line of a JSONL file is one object"
        return RowError(where, reason)
    if reason := decoder.problem():
        return RowError(where, reason)
    return record(value, number, where)


def from_table(text: TextFile, *, tab: bool) -> Iterator[Item]:
    """The rows of a table whose first line names its columns.

    Args:
        text: the file.
        tab: whether a tab is the likelier separator.
    """
    name, file = text.name, text.checked()
    separator = _separator(file, "\t" if tab else ",")
    csv.field_size_limit(MAX_ROW)
    table = csv.reader(
        io.TextIOWrapper(file, "utf-8", newline=""), strict=True, delimiter=separator
    )
    header: list[str] = []
    number, line = 0, 1
    try:
        for cells in table:
            where, line = f"{name}, row {number + 1} (line {line})", table.line_num + 1
            if not cells:
                continue
            if not header:
                header = _header(cells, name)
                continue
            number += 1
            if len(cells) == len(header):
                value = dict(zip(header, cells, strict=True))
                yield DataRecord(number=number, where=where, value=value)
            else:
                reason = (
                    f"{len(cells)} fields, but the header names {len(header)}; a text with "
                    f"{'tabs' if separator == chr(9) else repr(separator)} or line ends has to be "
                    "in double quotes"
                )
                yield RowError(where, reason)
    except csv.Error as error:
        raise DataError(
            f"{name}, line {table.line_num}: broken CSV ({error}); check the quotes, or save the "
            "table as JSONL"
        ) from error


def _separator(file: io.BufferedReader, usual: str) -> str:
    """The character that makes the most columns of the first line, the usual one where equal."""
    head = file.peek(2**16).decode("utf-8", "ignore").lstrip("\r\n ")
    first = head.splitlines()[:1]

    def columns(separator: str) -> int:
        return len(next(csv.reader(first, delimiter=separator), []))

    return max((usual, *SEPARATORS), key=columns)


def _header(cells: list[str], name: str) -> list[str]:
    # one empty name is the index column that pandas writes
    twice = sorted({cell[:40] for cell in cells if cells.count(cell) > 1})
    if twice or not any(cell.strip() for cell in cells):
        raise DataError(
            f"{name} has no header: its first line must name the columns, each once, found "
            f"{[cell[:40] for cell in cells[:12]]}"
        )
    return cells
