"""One reader and one writer for every result: scalars to JSON, arrays to safetensors."""

import json
import math
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..errors import RunError
from ..files.atomic import need_room
from ..files.jsonfiles import RECORD, read_json
from .base import RECORDS

SCHEMA = 7
"""Version of the records on disk; a reader refuses any other."""

R = TypeVar("R")
_HALF = re.compile("[\ud800-\udfff]")
"""Half a character: a byte of a file name that is no UTF-8, as Python holds it."""


def jsonable(value: Any) -> Any:
    """A value as strict JSON: records become objects, NaN and infinities become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.ndarray):
        return jsonable(value.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def dumps(value: Any) -> str:
    """Strict, indented JSON text of a value (see `jsonable`); it can always be encoded."""
    text = json.dumps(jsonable(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return _HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def _split(value: Any, where: str, arrays: dict[str, np.ndarray]) -> Any:
    """The JSON part of a value; its arrays go to `arrays` under their path."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        arrays[where] = np.ascontiguousarray(value)
        return {"array": where}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _split(getattr(value, f.name), f"{where}.{f.name}".strip("."), arrays)
            for f in fields(value)
        }
    if isinstance(value, list | tuple):
        return [_split(v, f"{where}.{i}", arrays) for i, v in enumerate(value)]
    return jsonable(value)


def save_record(record: Any, folder: Path, name: str) -> None:
    """Write a record as ``<name>.json`` and, when it holds arrays, ``<name>.safetensors``."""
    arrays: dict[str, np.ndarray] = {}
    body = _split(record, "", arrays)
    folder.mkdir(parents=True, exist_ok=True)
    if arrays:
        need_room(folder, sum(array.nbytes for array in arrays.values()))
        save_file(arrays, folder / f"{name}.safetensors")
    head = {"schema": SCHEMA, "record": type(record).__name__}
    (folder / f"{name}.json").write_text(dumps({**head, **body}), encoding="utf-8")


def _join(kind: Any, value: Any, arrays: dict[str, np.ndarray], where: str = "") -> Any:
    """A value as its field declares it.

    Raises:
        TypeError: it is something else; says where.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _join(next(a for a in args if a is not type(None)), value, arrays, where)
    if isinstance(value, dict) and set(value) == {"array"}:
        if value["array"] not in arrays:
            raise TypeError(f"{where}: there is no array {str(value['array'])[:60]!r}")
        return arrays[value["array"]]
    if isinstance(kind, type) and is_dataclass(kind):
        return _joined(kind, _typed(value, dict, where), arrays, where)
    if origin is Mapping:
        items = _typed(value, dict, where).items()
        return {k: _join(args[1], v, arrays, f"{where}.{k}") for k, v in items}
    if origin is tuple:
        items = enumerate(_typed(value, list, where))
        each = args[0] if len(args) == 2 and args[1] is Ellipsis else None
        return tuple(_join(each or args[i], v, arrays, f"{where}[{i}]") for i, v in items)
    if kind is float and value is None:
        return math.nan
    if kind in (int, float, str, bool):
        return _typed(value, kind, where)
    return value


def _joined(kind: Any, value: dict[str, Any], arrays: dict[str, np.ndarray], where: str) -> Any:
    hints = get_type_hints(kind)
    found = {}
    for field in fields(kind):
        name = f"{where}.{field.name}".strip(".")
        if field.name not in value and field.default is not MISSING:
            continue
        if field.name not in value:
            raise TypeError(f"{name} is missing")
        found[field.name] = _join(hints[field.name], value[field.name], arrays, name)
    return kind(**found)


def _typed(value: Any, kind: type, where: str) -> Any:
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where}: expected {kind.__name__}, found {str(value)[:60]!r}")
    return value


def load_any(folder: Path, name: str) -> Any:
    """A record of whatever class its file names, of all that there are.

    Raises:
        RunError: as `load_record`, or the class is not known.
    """
    from . import (  # noqa: F401  (they register)
        activations,
        bench,
        effectiveness,
        lens,
        neurons,
        patching,
        planted,
        results,
        spectra,
        triggers,
        vector,
    )

    path = folder / f"{name}.json"
    body = read_json(path, most=RECORD, what="the record", remedy="remake it with --fresh")
    kind = body.get("record") if isinstance(body, dict) else None
    if (found := RECORDS.get(str(kind))) is None:
        raise RunError(
            f"{path} is a {kind}, which this version does not know; remake it with --fresh, or "
            "name the file that defines it with --plugin"
        )
    return load_record(found, folder, name)


def load_record(kind: type[R], folder: Path, name: str) -> R:
    """The record of class `kind` that `save_record` wrote.

    Raises:
        RunError: the files are missing, damaged, of another class or another schema version.
    """
    path = folder / f"{name}.json"
    body = read_json(path, most=RECORD, what="the record", remedy="remake it with --fresh")
    try:
        packed = path.with_suffix(".safetensors")
        arrays = load_file(packed) if packed.exists() else {}
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read the record {path}: {error}") from error
    if not isinstance(body, dict):
        raise RunError(f"{path} is not a record but a JSON {type(body).__name__}")
    if body.get("schema") != SCHEMA or body.get("record") != kind.__name__:
        raise RunError(
            f"{path} is a {body.get('record')} of schema {body.get('schema')}; this version reads "
            f"{kind.__name__} of schema {SCHEMA}: remake it with --fresh"
        )
    try:
        return _join(kind, body, arrays)
    except TypeError as error:
        raise RunError(f"{path} is not a whole {kind.__name__} ({error}); use --fresh") from error
