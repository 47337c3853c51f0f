"""A run in memory: the same stages, nothing written."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ..errors import RunError
from ..records.io import jsonable
from ..rows import Row
from .provenance import code_digest, machine, versions
from .run import Run
from .shelf import MemoryShelf, Shelf

NOWHERE = Path("RUN")
"""What messages call a run that is nowhere."""


class MemoryRun(Run):
    """One run in this process; gone with it."""

    def __init__(self, request: Mapping[str, Any], *, name: str) -> None:
        self.root = NOWHERE
        self.manifest = {
            "name": name,
            "request": jsonable(dict(request)),
            "command": f"loratomy.open in Python ({name})",
            "versions": versions(),
            "machine": machine(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "stages": {},
        }
        self._shelves: dict[str, MemoryShelf] = {}
        self._scratch: dict[str, Path] = {}
        self._made = count(1)

    def has(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return stage in self._shelves

    def check(self, stage: str) -> None:
        """Raise unless a stage is finished."""
        if not self.has(stage):
            known = ", ".join(self._shelves) or "nothing yet"
            raise RunError(f"this study has no {stage}; it has {known}")

    def where(self, stage: str) -> str:
        """The name of a stage."""
        return stage

    def shelf(self, stage: str) -> MemoryShelf:
        """What a finished stage holds."""
        self.check(stage)
        return self._shelves[stage]

    def make(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        fill: Callable[[Shelf], None],
        *,
        fresh: bool = False,
    ) -> bool:
        """Make a stage whole or not at all, see `Run.make`."""
        if self.up_to_date(stage, inputs, fresh=fresh):
            return False
        began, shelf = time.perf_counter(), MemoryShelf()
        try:
            fill(shelf)
        finally:
            if scratch := self._scratch.pop(stage, None):
                shutil.rmtree(scratch, ignore_errors=True)
        self._shelves[stage] = shelf
        self.manifest["stages"][stage] = {
            "inputs": jsonable(dict(inputs)),
            "files": {"": str(next(self._made))},
            "seconds": round(time.perf_counter() - began, 2),
            "code": code_digest(),
            "versions": versions(),
        }
        return True

    def make_rows(
        self, stage: str, inputs: Mapping[str, Any], make: "Callable[[], Sequence[Row]]"
    ) -> bool:
        """A stage that is one set of rows."""
        return self.make(stage, inputs, lambda shelf: shelf.put_rows("rows", make()))

    def rows(self, stage: str) -> "list[Row]":
        """The rows of a finished stage that is one set of them."""
        return self.shelf(stage).rows("rows") or []

    def partial(self, stage: str, inputs: Mapping[str, Any], *, fresh: bool = False) -> Path:
        """A temporary folder for the Trainer, removed with the end of the stage."""
        folder = self._scratch.setdefault(stage, Path(mkdtemp(prefix="loratomy-")))
        return folder

    @contextmanager
    def locked(self, *, fresh: bool = False, wait: float = 0) -> Iterator[Run]:
        """Nobody else can hold it."""
        yield self
