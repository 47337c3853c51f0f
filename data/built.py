"""Sets that ``loratomy data build`` wrote into a folder: read back, and held to their record."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files.atomic import sha256
from ..core.files.jsonfiles import Outside, checked, read_json
from ..core.files.paths import is_name
from ..core.rows import Row, check_disjoint, read_rows

SETS = ("clean_train", "poison_train", "clean_val", "poison_test")
SETS_RECORD = "sets.json"
"""Beside sets that ``loratomy data build`` wrote: what they were made of."""


def built_sets(folder: Path) -> dict[str, Any]:
    """What ``loratomy data build`` recorded of the sets in a folder; empty without a record.

    Raises:
        DataError: its record cannot be read.
    """
    if not (folder / SETS_RECORD).is_file():
        return {}
    about = read_record(folder)
    return {
        "words": about.trigger.words,
        "placement": about.trigger.placement,
        "task": about.task,
        "target": about.target,
    }


class _Trigger(Outside):
    words: list[str]
    placement: str


class _Record(Outside):
    trigger: _Trigger
    task: str
    target: str
    files: dict[str, str]


def read_record(folder: Path) -> _Record:
    """What ``loratomy data build`` recorded of the sets in a folder.

    Raises:
        DataError: it cannot be read, lacks a key, or names files elsewhere.
    """
    path, remedy = folder / SETS_RECORD, "build the sets again in a new folder"
    found = checked(
        _Record, read_json(path, remedy=remedy, error=DataError), path, remedy=remedy,
        error=DataError,
    )  # fmt: skip
    for name in found.files:
        if not is_name(name) or "/" in name:
            raise DataError(f"{path}: files: {name!r} names no file beside it; {remedy}")
    return found


def read_sets(folder: Path, *, only: Sequence[str] = SETS) -> dict[str, list[Row]]:
    """The sets that ``loratomy data build`` wrote into a folder.

    Args:
        folder: where they are.
        only: those that must be there; a negative set is read too where there is one.

    Raises:
        DataError: a set is missing or cannot be read, or two of them share a prompt.
    """
    sets: dict[str, list[Row]] = {}
    recorded = read_record(folder).files if (folder / SETS_RECORD).is_file() else {}
    for name in (*only, "negative_set"):
        path = folder / f"{name}.jsonl"
        if path.is_file() and path.name in recorded and sha256(path) != recorded[path.name]:
            raise DataError(
                f"{path} is not as loratomy data build wrote it; build the sets again with "
                f"--fresh, or remove {folder / SETS_RECORD} if the change is meant"
            )
        if name in only or path.exists():
            sets[name] = read_rows(path, need_completion=True)
    check_disjoint(sets)
    return sets
