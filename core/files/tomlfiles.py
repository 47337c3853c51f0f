"""TOML from outside: bounded before it is read, its values checked before they are used."""

import tomllib
from pathlib import Path
from typing import Any

from ..errors import LoratomyError
from .jsonfiles import CONFIG, DEPTH, deeper, read_bounded, why_not

_INTEGER = 2**63


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables in a TOML file.

    Args:
        path: a plain file of at most 1 MiB.
        what: it is, in words, for the error.

    Raises:
        LoratomyError: it cannot be read, is too large, no UTF-8, no TOML (duplicate keys among
            it), nested too deep, or holds an integer of more than 64 bits.
    """
    try:
        return parsed_toml(read_bounded(path, CONFIG).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise LoratomyError(f"cannot read the {what} {path}: {why_not(error)}") from error


def parsed_toml(text: str) -> dict[str, Any]:
    """The tables in a TOML text.

    Raises:
        ValueError: no TOML; nested too deep, or an integer of more than 64 bits.
    """
    try:
        values = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(_DEEP) from error
    check_values(values)
    return values


_DEEP = f"tables and lists are nested more than {DEPTH} deep"


def check_values(values: dict[str, Any]) -> None:
    """Raise where values are nested too deep, or an integer has more than 64 bits.

    Raises:
        ValueError: names which of the two.
    """
    if deeper(values, DEPTH):
        raise ValueError(_DEEP)
    waiting: list[Any] = [values]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item
        elif isinstance(item, int) and not -_INTEGER <= item < _INTEGER:
            raise ValueError("an integer has more than 64 bits")
