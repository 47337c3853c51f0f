"""The answers behind a measurement, a row each: the texts, and a rule's scores and verdicts."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import RunError
from .results import Answer

SCORE, VERDICT = "score:", "verdict:"
"""Prefixes of the columns that hold one scorer's scores, one rule's verdicts."""
_PLAIN = tuple(f.name for f in fields(Answer) if f.name not in ("scores", "verdicts"))


_KEYS = ("split", "row", "sample")
"""The columns that identify an answer among those of its subject."""
_JUDGED = ("hit", "counted", "correct")


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write prompts and answers as parquet: the fields of `Answer` without the judgements."""
    plain = [name for name in _PLAIN if name not in _JUDGED]
    _write(path, {name: [getattr(a, name) for a in answers] for name in plain})


def write_scores(path: Path, answers: Sequence[Answer]) -> None:
    """Write a rule's judgements of answers: their keys, a column for each score and verdict."""
    columns: dict[str, Any] = {
        name: [getattr(a, name) for a in answers] for name in (*_KEYS, *_JUDGED)
    }
    for name in dict.fromkeys(name for a in answers for name in a.scores):
        columns[SCORE + name] = [a.scores.get(name) for a in answers]
    for name in dict.fromkeys(name for a in answers for name in a.verdicts):
        columns[VERDICT + name] = [a.verdicts.get(name) for a in answers]
    _write(path, columns)


def _write(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("wb") as file:  # pyarrow takes no names that are not UTF-8
        pq.write_table(pa.table(columns), file, compression="zstd")


def read_answers(path: Path) -> list[Answer]:
    """The answers that `write_answers` wrote, not judged.

    Raises:
        RunError: missing, damaged, or not such a table.
    """
    unjudged = {"scores": {}, "verdicts": {}, "hit": False, "counted": True, "correct": False}
    names = [name for name in _PLAIN if name not in _JUDGED]
    return [Answer(**{name: row[name] for name in names}, **unjudged) for row in _rows(path, names)]


def read_scores(path: Path, answers: Sequence[Answer]) -> list[Answer]:
    """Answers with what `write_scores` wrote of them.

    Raises:
        RunError: missing, damaged, or of other answers.
    """
    rows = _rows(path, [*_KEYS, *_JUDGED])
    keys = [tuple(getattr(a, name) for name in _KEYS) for a in answers]
    if [tuple(row[name] for name in _KEYS) for row in rows] != keys:
        raise RunError(f"{path} is of other answers; use compare --fresh")
    return [_judged(a, row) for a, row in zip(answers, rows, strict=True)]


def _rows(path: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as file:
            rows = pq.ParquetFile(file).read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"cannot read the answers {path}: {error}") from error
    if lost := [name for name in names if rows and name not in rows[0]]:
        raise RunError(f"{path} is no table of answers: it has no column {lost[0]!r}")
    return rows


def _judged(answer: Answer, row: dict[str, Any]) -> Answer:
    def named(prefix: str) -> dict[str, Any]:
        found = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
        return {k: v for k, v in found.items() if v is not None}

    judged = {name: row[name] for name in _JUDGED}
    return replace(answer, scores=named(SCORE), verdicts=named(VERDICT), **judged)
