"""Rows out of columnar files: Parquet, as the hub serves it, and Arrow."""

from collections.abc import Iterator
from typing import Any, BinaryIO

from ...core.errors import DataError
from ..formats.badrows import RowError
from .texts import DataRecord, Item

BATCH = 512
"""Rows that are turned into objects together."""
MARKS = {b"PAR1": "parquet", b"ARRO": "arrow", b"\xff\xff\xff\xff": "stream"}
"""The first four bytes of a file -> its kind."""


def from_columns(file: BinaryIO, name: str, kind: str) -> Iterator[Item]:
    """The rows of a Parquet or Arrow file, a few at a time.

    Args:
        file: opened, at any place.
        name: as errors call it.
        kind: of `MARKS`.

    Raises:
        DataError: broken, or two columns of one name.
    """
    import pyarrow as pa

    number = 0
    file.seek(0)
    try:
        for batch in _batches(file, kind):
            names = batch.schema.names
            if twice := sorted({n[:40] for n in names if names.count(n) > 1}):
                raise DataError(f"{name} names the columns {twice} twice; rename one")
            for start in range(0, batch.num_rows, BATCH):
                for value in _objects(batch.slice(start, BATCH)):
                    number += 1
                    where = f"{name}, row {number}"
                    if isinstance(value, str):
                        yield RowError(where, value)
                    else:
                        yield DataRecord(number=number, where=where, value=value)
    except (pa.ArrowException, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(
            f"{name}, after row {number}: broken {'Parquet' if kind == 'parquet' else 'Arrow'} "
            f"file ({ascii(reason)[1:-1]}); is it whole?"
        ) from error


def _batches(file: Any, kind: str) -> Iterator[Any]:
    import pyarrow.ipc as ipc
    import pyarrow.parquet as pq

    if kind == "parquet":
        yield from pq.ParquetFile(file).iter_batches(batch_size=BATCH)
        return
    if kind == "stream":
        batches = iter(ipc.open_stream(file))
    else:
        opened = ipc.open_file(file)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
    for batch in batches:
        batch.validate(full=True)  # offsets beyond the buffers would be read otherwise
        yield batch


def _objects(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch; a text for one that is not UTF-8."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_object(batch.slice(i, 1)) for i in range(batch.num_rows)]
    for row in rows:
        if isinstance(row, dict):
            yield {k: v for k, v in row.items() if not k.startswith("__index_level_")}
        else:
            yield row


def _object(one: Any) -> dict[str, Any] | str:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"a text that is not UTF-8 ({error.reason})"
