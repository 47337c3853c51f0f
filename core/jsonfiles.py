"""JSON from outside: bounded before it is read, checked before it is used."""

import json
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import LoratomyError, RunError

CONFIG, MANIFEST, RECORD = 2**20, 32 * 2**20, 64 * 2**20
"""Most bytes of a settings file, of a run's manifest, of a record."""
DEPTH = 64
"""Most objects and lists in each other."""

M = TypeVar("M", bound=BaseModel)


class Outside(BaseModel):
    """Keys and types that a JSON object must have; others are left alone, none is converted."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def read_json(
    path: Path,
    *,
    most: int = CONFIG,
    what: str = "",
    remedy: str = "",
    error: type[LoratomyError] = RunError,
) -> Any:
    """The value in a JSON file.

    Args:
        path: a plain file.
        most: bytes that it may have; a longer one is not read.
        what: it is, in words, for the error.
        remedy: what to do about one that cannot be read, for the error.
        error: class of the error.

    Raises:
        LoratomyError: it cannot be read, is too large, no UTF-8, no JSON, or nested too deep.
    """
    try:
        value = json.loads(_bounded(path, most).decode("utf-8"))
        if _deeper(value, DEPTH):
            raise ValueError(f"objects and lists are nested more than {DEPTH} deep")
        return value
    except RecursionError:
        why = f"objects and lists are nested more than {DEPTH} deep"
    except UnicodeDecodeError as found:
        why = f"not UTF-8 (byte {found.start})"
    except OSError as found:
        why = found.strerror or str(found)
    except ValueError as found:
        why = str(found)
    named = f"{what} {path}" if what else str(path)
    raise error(f"cannot read {named}: {why}{f'; {remedy}' if remedy else ''}")


def _bounded(path: Path, most: int) -> bytes:
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe is not waited for
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a plain file")
        if status.st_size > most:
            raise ValueError(f"{status.st_size} bytes, where {most} are the most")
        return file.read(most)


def _deeper(value: Any, most: int) -> bool:
    """Whether objects and lists are in each other more than so many deep."""
    level = [value]
    for _ in range(most):
        inner: list[Any] = []
        for item in level:
            inner += (
                item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
            )
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def checked(
    model: type[M],
    value: Any,
    path: Path,
    *,
    remedy: str = "",
    error: type[LoratomyError] = RunError,
) -> M:
    """A JSON value as what it should be.

    Raises:
        LoratomyError: a key is missing or of another type; names the first one.
    """
    try:
        return model.model_validate(value)
    except ValidationError as found:
        first = found.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        got = "" if first["type"] == "missing" else f" (found {str(first['input'])[:60]!r})"
        line = f"{path}: {key}: {first['msg']}{got}{f'; {remedy}' if remedy else ''}"
    raise error(line)
