"""The table of answers behind a measurement: one parquet file, a row for each answer."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import RunError
from .results import Answer

SCORE, VERDICT = "score:", "verdict:"
"""Prefixes of the columns that hold one scorer's scores, one rule's verdicts."""
_PLAIN = tuple(f.name for f in fields(Answer) if f.name not in ("scores", "verdicts"))


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write answers as parquet: the fields of `Answer`, and a column for each score and verdict."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {name: [getattr(a, name) for a in answers] for name in _PLAIN}
    for name in dict.fromkeys(name for a in answers for name in a.scores):
        columns[SCORE + name] = [a.scores.get(name) for a in answers]
    for name in dict.fromkeys(name for a in answers for name in a.verdicts):
        columns[VERDICT + name] = [a.verdicts.get(name) for a in answers]
    with path.open("wb") as file:  # pyarrow takes no names that are not UTF-8
        pq.write_table(pa.table(columns), file, compression="zstd")


def read_answers(path: Path) -> list[Answer]:
    """The answers that `write_answers` wrote.

    Raises:
        RunError: missing, damaged, or not such a table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            rows = pq.ParquetFile(file).read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read the answers {path}: {error}") from error
    try:
        return [_answer(row) for row in rows]
    except KeyError as error:
        raise RunError(f"{path} is no table of answers: it has no column {error}") from error


def _answer(row: dict[str, Any]) -> Answer:
    def named(prefix: str) -> dict[str, Any]:
        found = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
        return {k: v for k, v in found.items() if v is not None}

    return Answer(
        **{name: row[name] for name in _PLAIN}, scores=named(SCORE), verdicts=named(VERDICT)
    )
