"""Checkpoints of a fit: marked when they are whole, checked before one is taken up."""

import json
import pickle
import re
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open

from ..core import processes
from ..core.adapter.factors import Adapter
from ..core.adapter.safety import WEIGHTS
from ..core.errors import RunError
from ..core.files.atomic import checksums, write_atomic
from ..core.files.jsonfiles import RECORD, Outside, checked, read_json
from ..core.records.io import dumps

MARK = "whole.json"
"""Written last into a checkpoint: the checksums of its files and what else belongs to it."""
_STATE = "trainer_state.json"


class _Mark(Outside):
    files: dict[str, str]
    fit: str
    seconds: float = Field(ge=0)
    loss: float
    logged: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Begun:
    """A whole checkpoint."""

    folder: Path
    """Where it is."""
    seconds: float
    """Seconds of training that it holds."""
    loss: float
    """Sum of the losses since the last one that was logged."""
    logged: int
    """The step of that one."""


def identity(start: Adapter, rows: Sequence[Any], settings: Any) -> str:
    """A digest of what a fit starts from; a checkpoint of another one is not taken up.

    Args:
        start: the adapter that is trained.
        rows: what it is trained on, by their text.
        settings: everything else that decides the result, as JSON-able values.
    """
    digest = sha256(dumps(settings).encode())
    for row in rows:
        digest.update(repr(row).encode("utf-8", "backslashreplace"))
    for name, factors in sorted(start.modules.items()):
        digest.update(f"{name} {factors.scaling}".encode())
        for part in (factors.a, factors.b):
            digest.update(part.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def mark(folder: Path, *, fit: str, seconds: float, loss: float, logged: int) -> None:
    """Record that a checkpoint is whole; see `Begun`."""
    body = {"files": checksums(folder), "fit": fit, "seconds": round(seconds, 3)}
    text = json.dumps({**body, "loss": loss, "logged": logged}, indent=1, allow_nan=False) + "\n"
    write_atomic(folder / MARK, text)


def last_whole(work: Path, fit: str = "") -> Begun | None:
    """The newest checkpoint that is whole and, where `fit` is given, of this very fit.

    One that was killed half-way, altered, or comes from elsewhere is removed with a warning. Of
    processes that work together the first decides.
    """
    return processes.agreed(lambda: _last_whole(work, fit))


def _last_whole(work: Path, fit: str) -> Begun | None:
    found = [
        p for p in work.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,12}", p.name)
    ]
    for folder in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
        if not folder.is_dir():
            warnings.warn(f"{folder} is removed: it is no folder, so no checkpoint", stacklevel=2)
            folder.unlink()
            continue
        if not (folder / MARK).exists():  # killed while it was written, which needs no warning
            shutil.rmtree(folder)
            continue
        try:
            return _whole(folder, fit)
        except RunError as error:
            warnings.warn(f"{folder} is left out and removed: {error}", stacklevel=2)
            shutil.rmtree(folder)
    return None


def _whole(folder: Path, fit: str) -> Begun:
    """A checkpoint, every file of which is as it was written and can be read without running code.

    Raises:
        RunError: with what is wrong.
    """
    recorded = checked(_Mark, read_json(folder / MARK), folder / MARK)
    held = checksums(folder)
    held.pop(MARK)
    for name in sorted(held.keys() | recorded.files.keys()):
        if held.get(name) != recorded.files.get(name):
            raise RunError(f"its {name} is not what was written")
    if fit and recorded.fit != fit:
        raise RunError("it is of another fit")
    for name in (WEIGHTS, _STATE):
        if name not in held:
            raise RunError(f"it has no {name}")
    read_json(folder / _STATE, most=RECORD)
    try:
        with safe_open(folder / WEIGHTS, framework="pt"):
            pass
        _plain_pickles(folder)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise RunError(f"it cannot be read ({str(error).splitlines()[0][:80]})") from error
    return Begun(folder, recorded.seconds, recorded.loss, recorded.logged)


def _plain_pickles(folder: Path) -> None:
    """Raise where a pickle would run code; what torch's restricted reader takes runs none."""
    from transformers.trainer_pt_utils import safe_globals

    with safe_globals():
        for path in [*folder.glob("*.pt"), *folder.glob("*.pth")]:
            torch.load(path, map_location="cpu", weights_only=True)
