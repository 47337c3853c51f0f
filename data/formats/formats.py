"""Published data as rows: the format known by its keys, every record checked, none held."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ...core.errors import DataError
from ...core.rows import Row, rows_to_jsonl
from ..files.readers import items
from ..files.texts import DataRecord, Item
from .badrows import BadRows, RowError, shown_kinds
from .columns import (
    ANSWERS,
    BELOW,
    KNOWN,
    PROMPTS,
    Columns,
    Named,
    filled,
    key_list,
    plain,
    renamed,
)
from .published import FORMATS, Format, own_columns, with_own

__all__ = [
    "FORMATS",
    "Format",
    "Numbered",
    "format_of",
    "numbered_data",
    "read_data",
]

COUNTED_FOR = 3.0
"""Seconds in which the bad rows after the first one are counted."""

SKIP = "; --skip-bad-rows (open, evaluate, data build) leaves such rows out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """A row and its place in its source."""

    number: int
    """Which row of the source, from 1."""
    where: str
    """The same for people: ``poison.json, row 3``."""
    row: Row
    """The row itself."""


def format_of(record: Mapping[str, Any]) -> Format:
    """The format that a record's keys belong to, the first of those that fit.

    Raises:
        DataError: the keys fit no format; with the nearest known columns.
    """
    plainly = {plain(str(key)): value for key, value in record.items()}
    for _, known in FORMATS.items():
        if not known.lacks(plainly):
            return known
    near = {
        str(key)[:40]: close[0]
        for key in record
        if plain(str(key)) not in KNOWN
        and (close := get_close_matches(plain(str(key)), KNOWN, n=1, cutoff=0.7))
    }
    hint = "; ".join(f"{key!r} is near to {name!r}" for key, name in list(near.items())[:3])
    raise DataError(
        f"the keys {key_list(record)} fit no known format"
        + (f" ({hint})" if hint else "")
        + "; say which is which with --column prompt=NAME and --column answer=NAME, or rename them "
        "(loratomy data formats lists what is read)"
    )


def numbered_data(
    source: "str | Iterable[Any]",
    *,
    format: str | None = None,
    notes: Counter[str] | None = None,
    columns: Columns | None = None,
    bad: BadRows | None = None,
) -> Iterator[Numbered]:
    """The rows of a file, folder or hub data set with their numbers, streamed, each one checked.

    Empty answers are kept as they are: they are for the linter to report.

    Args:
        source: what `items` reads, or records in memory: mappings, prompts, rows.
        format: one of `FORMATS`; None: the one that the first record's keys belong to.
        notes: counts, by a sentence for people, of what was read otherwise than written.
        columns: what columns of other names mean; see `columns.MEANINGS`.
        bad: where rows that cannot be read are counted, and left out; None: they are errors.

    Raises:
        LoratomyError: an unknown format name (at once).
        DataError: a source that cannot be read, an unknown format, a missing key, a value that is
            no text or that no file can hold, an empty prompt, with the row; two columns that could
            both be the prompt or the answer; no row that can be read.
    """
    known = None if format is None else FORMATS[format]
    notes = Counter() if notes is None else notes
    named = columns if isinstance(columns, Named) else Named(columns or {})
    if isinstance(source, str):
        return _numbered(source, items(source, notes), _Reader(source, known, notes, named), bad)
    name = "the given rows"
    return _numbered(name, _in_memory(source), _Reader(name, known, notes, named), bad)


def _in_memory(records: Iterable[Any]) -> Iterator[Item]:
    """Records as `items` gives them: a text is a prompt, a data frame's rows are its lines."""
    if hasattr(records, "to_dict") and hasattr(records, "columns"):
        records = records.to_dict("records")  # pyright: ignore
    for number, record in enumerate(records, 1):
        where = f"row {number} of the given rows"
        if isinstance(record, Row):
            yield DataRecord(number=number, where=where, value=json.loads(rows_to_jsonl([record])))
        elif isinstance(record, str):
            yield DataRecord(number=number, where=where, value={"prompt": record})
        elif isinstance(record, Mapping):
            yield DataRecord(number=number, where=where, value=dict(record))
        else:
            raise DataError(
                f"{where} is a {type(record).__name__}; give mappings with a prompt and an answer, "
                "prompts as text, or rows"
            )


def read_data(
    source: "str | Iterable[Any]",
    *,
    format: str | None = None,
    notes: Counter[str] | None = None,
    columns: Columns | None = None,
    bad: BadRows | None = None,
) -> Iterator[Row]:
    """The rows of `numbered_data` without their numbers.

    Raises:
        LoratomyError: as `numbered_data`.
    """
    found = numbered_data(source, format=format, notes=notes, columns=columns, bad=bad)
    return (item.row for item in found)


def _numbered(
    source: str, stream: Iterator[Item], reader: "_Reader", bad: BadRows | None
) -> Iterator[Numbered]:
    readable = number = 0
    for number, item in enumerate(stream, 1):
        try:
            row = reader.row(item)
        except DataError as error:
            reader.columns.check()  # a mistyped name explains more than what follows from it
            if not isinstance(error, RowError):
                raise
            if bad is None:
                raise DataError(f"{error}{_others(stream, reader)}") from error
            bad.add(error, number)
            continue
        readable += 1
        assert isinstance(item, DataRecord)
        yield Numbered(number=number, where=item.where, row=row)
    if bad is not None and not readable and not bad.may_be_all:
        raise DataError(f"none of the {number} rows of {source} can be read; {bad.first[0]}")


def _others(stream: Iterator[Item], reader: "_Reader") -> str:
    """What to do about a bad row, and how many more there are, as far as they are soon counted."""
    kinds: Counter[str] = Counter()
    until, seen, whole = time.monotonic() + COUNTED_FOR, 0, False
    try:
        for item in stream:
            seen += 1
            try:
                reader.row(item)
            except RowError as error:
                kinds[error.kind] += 1
            if time.monotonic() > until:
                break
        else:
            whole = True
    except RowError as error:
        kinds[error.kind] += 1
    except DataError as error:
        if "changed while it was read" in str(error):
            raise
    among = "" if whole else f" among the next {seen}"
    more = f"; {kinds.total()} more bad rows{among} ({shown_kinds(kinds)})" if kinds else ""
    return more + (SKIP if reader.known else "")


@dataclass
class _Reader:
    """Records of one source to rows, all in one format."""

    source: str
    known: Format | None
    notes: Counter[str]
    columns: Named
    format_given: bool = field(init=False)
    _layouts: dict[tuple[str, ...], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.format_given = self.known is not None

    def row(self, item: Item) -> Row:
        """The row of a record.

        Raises:
            RowError: it cannot be read.
            DataError: its columns can be read in two ways.
        """
        if isinstance(item, RowError):
            raise item
        where = item.where
        record = renamed(item.value, self.columns, where)
        if self.known is None:
            try:
                self.known = format_of(record if self.columns else item.value)
            except DataError as error:
                raise RowError(where, str(error)) from error
        known = self.known
        if missing := known.lacks(record):
            names = ", ".join(" or ".join(need.split("|")[:4]) for need in missing)
            raise RowError(
                where, f"missing {names}, which {known.name} rows have; the keys "
                f"here are {key_list(item.value)}",
            )  # fmt: skip
        try:
            row = with_own(known, known.row(record, where), record, where)
        except RecursionError as error:
            raise RowError(where, "nested too deep to read") from error
        if not self.format_given:
            _check_rivals(known, record, row, where)
        self._note(item.value, record)
        return row

    def _note(self, value: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Note once which columns are not read."""
        keys = tuple(value)
        if keys in self._layouts or self.known is None:
            return
        self._layouts[keys] = True
        taken = {name for name in self.columns.values() if name in value}
        used = (set(self.known.reads) & set(record)) - _idle(self.known, record)
        used.update(own_columns(self.known, record))
        unread = [key for key in value if key not in taken and plain(key) not in used]
        if unread := [key for key in unread if value[key] is not None and key.strip()]:
            self.notes[
                f"file with columns that nothing is made of: {key_list(unread)} in {self.source} "
                f"(read as {self.known.name})"
            ] += 1


def _idle(known: Format, record: Mapping[str, Any]) -> set[str]:
    """Columns that would be the prompt or the answer, were there not a likelier one."""
    idle: set[str] = set()
    for names in (known.prompts, known.answers):
        own, *others = filled(record, (n for n in names if n not in BELOW)) or [""]
        idle |= {name for name in others if record[name] != record[own]}
    return idle


def _check_rivals(known: Format, record: Mapping[str, Any], row: Row, where: str) -> None:
    """Raise where another column could be the prompt or the answer just as well."""
    if known.prompts:
        _check_rival("prompt", PROMPTS, known, record, row.prompt, where)
    _check_rival("answer", ANSWERS, known, record, row.completion or row.target or "", where)


def _check_rival(
    meaning: str,
    names: tuple[str, ...],
    known: Format,
    record: Mapping[str, Any],
    value: str,
    where: str,
) -> None:
    used = known.prompts if meaning == "prompt" else known.answers
    own = (filled(record, used) or [""])[0]
    prompt = record[own].strip() if isinstance(record.get(own), str) else value.strip()
    for name in filled(record, names):
        text = record[name]
        if name == own or not isinstance(text, str) or text.strip() in ("", value.strip()):
            continue
        if meaning == "prompt" and (prompt in text or text.startswith("Below is")):
            continue  # the prompt among other text is a rendering of it
        this = own or known.needs[0].split("|")[0]
        fits = [other.name for _, other in FORMATS.items() if not other.lacks(dict(record))]
        how = f"--column {meaning}={this} or {meaning}={name}, or with " if own else ""
        raise DataError(
            f"{where}: the keys {key_list(record)} fit {' and '.join(fits[:4])}: both {this} and "
            f"{name} could be the {meaning}, and they differ; say which with {how}--format"
        )
