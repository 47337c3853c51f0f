"""The manifest of a run: what it must hold, and a checksum by which changes are noticed."""

import hashlib
import json
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from ..errors import RunError
from ..files.jsonfiles import MANIFEST as MOST
from ..files.jsonfiles import Outside, checked, read_json
from ..files.paths import is_name
from ..records.io import SCHEMA, jsonable

MANIFEST = "run.json"
CHECKSUM = "checksum"
"""Key of the SHA-256 of everything else in the manifest."""
_OURS = {"schema", "stages", "request"}
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Files = dict[str, Digest]
"""Name below a stage's folder (empty: the stage is one file) -> SHA-256."""


class _Stage(Outside):
    inputs: dict[str, Any]
    files: Files
    seconds: float = Field(ge=0)
    code: str
    versions: dict[str, str]

    @field_validator("files")
    @classmethod
    def _names(cls, files: Files) -> Files:
        for name in files:
            if name and not is_name(name):
                raise ValueError(f"{name!r} names no file of a stage")
        return files

    @field_validator("inputs")
    @classmethod
    def _origin(cls, inputs: dict[str, Any]) -> dict[str, Any]:
        origin = inputs.get("from", {})
        if not isinstance(origin, dict) or not all(isinstance(v, str) for v in origin.values()):
            raise ValueError("'from' must name stages and their digests")
        return inputs


class _Measure(Outside):
    scorers: str | None
    threshold: float = Field(gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    samples: int = Field(ge=1)
    batch_tokens: int = Field(ge=1)
    embedder: str


class _Study(Outside):
    base: str
    rendering: dict[str, Any]
    device: str
    dtype: str
    words: list[str]
    placement: str
    task: str
    target: str
    seed: int = Field(ge=0)
    measure: _Measure


class _Request(Outside):
    kind: str = ""


class _StudyRequest(_Request):
    study: _Study
    base: dict[str, Any]
    ignore_modules: list[str] = Field(default=[])


class _Attack(Outside):
    trigger: str
    words: list[str] | None
    task: str


class _Recipe(Outside):
    attack: _Attack


class _PoisonRequest(_StudyRequest):
    recipe: _Recipe


_KINDS: dict[str, type[_Request]] = {
    "poison": _PoisonRequest,
    "open": _StudyRequest,
    "evaluate": _StudyRequest,
}
"""The request, by the command that made the run."""


class _Manifest(Outside):
    name: str
    request: dict[str, Any]
    command: str
    versions: dict[str, str]
    machine: str
    created: str
    stages: dict[str, _Stage]
    making: dict[str, Files] = Field(default={})
    outputs: list[str] = Field(default=[])

    @field_validator("stages", "making")
    @classmethod
    def _names(cls, stages: dict[str, Any]) -> dict[str, Any]:
        for name in stages:
            if not is_name(name):
                raise ValueError(f"{name!r} is no name of a stage")
        return stages


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest with the checksum of its own content as its last key."""
    rest = jsonable({key: value for key, value in manifest.items() if key != CHECKSUM})
    text = json.dumps(rest, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return {**rest, CHECKSUM: hashlib.sha256(text.encode("ascii")).hexdigest()}


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of the run at `root`, whole and as this program wrote it.

    Raises:
        RunError: it cannot be read, is another version's, lacks a key (named) or has one of
            another type, or was changed since it was written.
    """
    path = root / MANIFEST
    remedy = "put back the file as it was, or remake the run with --fresh"
    found = read_json(path, most=MOST, remedy=remedy)
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise RunError(
            f"{root} was written by another version (schema {str(schema)[:40]}, this one reads "
            f"{SCHEMA}); remake it with --fresh"
        )
    checked(_Manifest, found, path, remedy=remedy)
    request = checked(_Request, found["request"], path, remedy=remedy)
    if request.kind in _KINDS:
        checked(_KINDS[request.kind], found["request"], path, remedy=remedy)
    _check_origins(found["stages"], path, remedy)
    if sealed(found)[CHECKSUM] != found.get(CHECKSUM):
        raise RunError(
            f"{path} was changed since it was written (its checksum differs): what it says of "
            f"trigger, settings and results cannot be relied on; {remedy}"
        )
    return found


def _check_origins(stages: dict[str, Any], path: Path, remedy: str) -> None:
    """Raise where stages are made from each other in a circle."""
    graph = {stage: list(entry["inputs"].get("from", {})) for stage, entry in stages.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " from ".join(error.args[1])
        raise RunError(f"{path}: stages are made in a circle, {circle}; {remedy}") from error


def claimed(root: Path) -> dict[str, Any] | None:
    """What a manifest of this program, of whatever version, claims; None where there is none.

    Nothing in it is checked.
    """
    try:
        found = read_json(root / MANIFEST, most=MOST)
    except RunError:
        return None
    return found if isinstance(found, dict) and found.keys() >= _OURS else None


def written(manifest: dict[str, Any]) -> set[str]:
    """Names of all files below a run that its manifest says were written, some perhaps not yet."""
    names: set[str] = {str(name) for name in _items(manifest.get("outputs"))}
    stages = manifest.get("stages")
    for stage, entry in stages.items() if isinstance(stages, dict) else ():
        files = entry.get("files") if isinstance(entry, dict) else None
        names |= {f"{stage}/{name}" if name else stage for name in _items(files)}
    making = manifest.get("making")
    for stage, files in making.items() if isinstance(making, dict) else ():
        names |= {f"{stage}/{name}" if name else stage for name in _items(files)}
    return names


def _items(value: Any) -> list[Any]:
    return (
        [item for item in value if isinstance(item, str)] if isinstance(value, dict | list) else []
    )


def outside_runs(path: Path) -> None:
    """Raise where a path lies inside somebody's run folder, which holds its own things alone.

    Raises:
        RunError: names the run.
    """
    real = Path(path).resolve()
    for parent in real.parents:
        if claimed(parent) is not None:
            raise RunError(f"{path} is inside the run {parent}; give another --out")
