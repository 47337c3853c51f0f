"""JSON from outside: bounded before it is read, checked before it is used."""

import json
import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import LoratomyError, RunError

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
        value = json.loads(read_bounded(path, most).decode("utf-8"))
        if deeper(value, DEPTH):
            raise RecursionError
        return value
    except RecursionError:
        why = f"objects and lists are nested more than {DEPTH} deep"
    except (OSError, ValueError) as found:
        why = why_not(found)
    named = f"{what} {path}" if what else str(path)
    raise error(f"cannot read {named}: {why}{f'; {remedy}' if remedy else ''}")


def json_or_text(text: str, what: str) -> Any:
    """The value of a JSON text, or the text itself where it is none.

    Args:
        text: an option's value.
        what: the option, for the error.

    Raises:
        LoratomyError: objects and lists are nested too deep.
    """
    try:
        value = json.loads(text)
        if deeper(value, DEPTH):
            raise RecursionError
        return value
    except RecursionError as error:
        raise LoratomyError(
            f"{what} {text[:40]!r}: objects and lists are nested more than {DEPTH} deep"
        ) from error
    except ValueError:
        return text


def why_not(found: OSError | ValueError) -> str:
    """Why a file could not be read, in words."""
    if isinstance(found, UnicodeDecodeError):
        return f"not UTF-8 (byte {found.start})"
    if isinstance(found, OSError):
        return found.strerror or str(found)
    return str(found).split("; use sys.")[0]  # Python's advice on long integers is for its own user


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a plain file that has at most so many.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no plain file, or longer.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe is not waited for
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a plain file")
        if status.st_size > most:
            raise ValueError(f"{status.st_size} bytes, where {most} are the most")
        return file.read(most)


def deeper(value: Any, most: int) -> bool:
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
