"""The rows of the bench as a flat table: parquet for programs, CSV for spreadsheets."""

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import LoratomyError, RunError
from ..files.atomic import write_atomic
from .bench import BenchRow
from .io import SCHEMA
from .results import Rate

PARTS = ("", "_low", "_high", "_n")
"""What a rate's column names end in: its value, its interval, its count."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for the start of a formula."""
_KEY = b"loratomy.bench"


def flat(row: BenchRow) -> dict[str, Any]:
    """A row as column -> value; a rate becomes ``asr``, ``asr_low``, ``asr_high``, ``asr_n``."""
    out: dict[str, Any] = {}
    for field in fields(BenchRow):
        value = getattr(row, field.name)
        if isinstance(value, Rate):
            numbers = (value.value, value.low, value.high, value.n)
            out |= {field.name + p: v for p, v in zip(PARTS, numbers, strict=True)}
        else:
            out[field.name] = value
    return out


def write_bench_table(folder: Path, name: str, rows: Sequence[BenchRow]) -> tuple[Path, Path]:
    """Write rows as ``<name>.parquet`` and ``<name>.csv``; the two paths.

    Each file appears whole or not at all. Numbers in the CSV are the shortest that read back as
    the same; ``nan`` and ``inf`` where they are not finite. Texts are quoted, and one that a
    spreadsheet would take for a formula has an apostrophe before it. The parquet file has every
    text as it is.

    Raises:
        LoratomyError: no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not rows:
        raise LoratomyError("the bench has no rows to write; run it on a cell first")
    lines = [flat(row) for row in rows]
    types = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    kinds = _columns()
    schema = pa.schema(
        [(column, types[kind]) for column, kind in kinds.items()], metadata={_KEY: str(SCHEMA)}
    )
    packed = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines, schema), packed, compression="zstd")
    paths = folder / f"{name}.parquet", folder / f"{name}.csv"
    write_atomic(paths[0], packed.getvalue())
    write_atomic(paths[1], _csv(lines, kinds))
    return paths


def read_bench_table(path: Path) -> tuple[BenchRow, ...]:
    """The rows in a parquet file that `write_bench_table` wrote.

    Raises:
        RunError: missing, damaged, of another version, or not such a table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read the bench {path}: {error}") from error
    version = (table.schema.metadata or {}).get(_KEY, b"none").decode()
    if version != str(SCHEMA):
        raise RunError(f"{path} is a bench of schema {version}, not {SCHEMA}; make it again")
    if lost := [column for column in _columns() if column not in table.column_names]:
        raise RunError(f"{path} is no table of a bench: it has no column {', '.join(lost)}")
    return tuple(_row(line) for line in table.to_pylist())


def _columns() -> dict[str, type]:
    """Column -> type, in the order of the record."""
    out: dict[str, type] = {}
    for field in fields(BenchRow):
        if field.type is Rate:
            out |= {field.name + p: int if p == "_n" else float for p in PARTS}
        else:
            out[field.name] = field.type  # pyright: ignore[reportArgumentType]
    return out


def _row(line: dict[str, Any]) -> BenchRow:
    made: dict[str, Any] = {
        field.name: Rate(
            value=line[field.name],
            low=line[f"{field.name}_low"],
            high=line[f"{field.name}_high"],
            n=line[f"{field.name}_n"],
        )
        if field.type is Rate
        else line[field.name]
        for field in fields(BenchRow)
    }
    return BenchRow(**made)


def _csv(lines: list[dict[str, Any]], kinds: dict[str, type]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(kinds)
    writer.writerows(
        [_cell(line[column], kind) for column, kind in kinds.items()] for line in lines
    )
    return text.getvalue()


def _cell(value: Any, kind: type) -> Any:
    if kind is str:
        return f"'{value}" if value.startswith(FORMULA) else value
    return kind(value)  # a plain number, which the writer leaves unquoted and whole
