"""Every record class, filled by its type hints, through the one writer and the one reader."""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from loratomy.core.errors import RunError
from loratomy.core.records import (
    across,
    activations,
    bench,
    effectiveness,
    neurons,
    results,
    vector,
)
from loratomy.core.records import lens as readings
from loratomy.core.records import patching as causal
from loratomy.core.records import spectra as weights
from loratomy.core.records import triggers as candidates
from loratomy.core.records.io import SCHEMA, dumps, jsonable, load_record, save_record

MODULES = (
    *(results, across, candidates, causal, weights),
    *(readings, activations, effectiveness, neurons, bench, vector),
)
RECORDS = [
    kind
    for module in MODULES
    for kind in vars(module).values()
    if isinstance(kind, type) and is_dataclass(kind) and kind is not results.RunRecords
]


def filled(kind, *, seed: int = 0):
    """A value of a type: NaN among the floats, empty and non-empty arrays, nested records."""
    rng = np.random.default_rng(seed)
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(a for a in get_args(kind) if a is not type(None))
        if kind is float:
            return 0.5  # JSON has one null for None and NaN: such a field is never NaN
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: filled(hints[f.name], seed=i) for i, f in enumerate(fields(kind))})
    if get_origin(kind) is tuple:
        return tuple(filled(get_args(kind)[0], seed=seed + i) for i in range(2))
    if get_origin(kind) is Mapping:
        return {name: filled(get_args(kind)[1], seed=seed + i) for i, name in enumerate(("a", "é"))}
    if kind is np.ndarray:
        shapes = [(0,), (0, 0), (3,), (2, 3, 2)]
        array = rng.normal(size=shapes[seed % 4])
        array.reshape(-1)[:1] = math.nan
        return [array, array.astype(np.float32), np.arange(4)][seed % 3]
    values = {
        float: math.nan if seed % 2 else 0.1 + seed,
        int: seed,
        bool: bool(seed % 2),
        str: f'é "{seed}"\n\x1b',
    }
    return values[kind]


def equal(one, other) -> bool:
    if is_dataclass(one):
        return type(one) is type(other) and all(
            equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    if isinstance(one, np.ndarray):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(v, other[k]) for k, v in one.items())
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    "kind",
    RECORDS,
    ids=lambda c: c.__name__,
)
def test_round_trip(kind, tmp_path):
    record = filled(kind)
    save_record(record, tmp_path / "new" / "folder", "r")
    assert equal(load_record(kind, tmp_path / "new" / "folder", "r"), record)
    text = (tmp_path / "new" / "folder" / "r.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_optional_records_may_be_none(tmp_path):
    base = filled(results.Operation)
    values = {f.name: getattr(base, f.name) for f in fields(base)} | {"path": None}
    save_record(results.Operation(**values), tmp_path, "r")
    assert load_record(results.Operation, tmp_path, "r").path is None


def test_what_is_not_a_number_is_null_in_json():
    assert jsonable({"a": [math.nan, math.inf, np.float32(0.5), np.array([1, 2])]}) == {
        "a": [None, None, 0.5, [1, 2]]
    }
    assert dumps(math.nan) == "null\n"


def test_wrong_class_schema_and_damage_are_errors_that_name_the_file(tmp_path):
    save_record(filled(results.Rate), tmp_path, "r")
    path = tmp_path / "r.json"
    with pytest.raises(RunError, match=r"r\.json is a Rate of schema"):
        load_record(results.Setting, tmp_path, "r")
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "schema": SCHEMA + 1}))
    with pytest.raises(RunError, match=f"schema {SCHEMA + 1}"):
        load_record(results.Rate, tmp_path, "r")
    path.write_text(json.dumps({k: v for k, v in body.items() if k != "low"}))
    with pytest.raises(RunError, match="not a whole Rate"):
        load_record(results.Rate, tmp_path, "r")
    for damaged in ("", "{", "[]", "3", '"text"'):
        path.write_text(damaged)
        with pytest.raises(RunError, match=r"r\.json"):
            load_record(results.Rate, tmp_path, "r")
    with pytest.raises(RunError, match=r"other\.json"):
        load_record(results.Rate, tmp_path, "other")


def test_lost_and_damaged_arrays_are_errors(tmp_path):
    save_record(filled(weights.Spectra), tmp_path, "r")
    packed = tmp_path / "r.safetensors"
    packed.write_bytes(packed.read_bytes()[:-8])
    with pytest.raises(RunError, match=r"r\.json"):
        load_record(weights.Spectra, tmp_path, "r")
    packed.unlink()
    with pytest.raises(RunError, match="not a whole Spectra"):
        load_record(weights.Spectra, tmp_path, "r")
