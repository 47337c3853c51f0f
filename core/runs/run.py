"""What every run is, on disk or in memory: stages, what they were made from, which are stale."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunError
from ..records.io import dumps, jsonable
from .shelf import Shelf

if TYPE_CHECKING:
    from ..rows import Row


class Run(ABC):
    """Stages by name, each with the inputs that it was made from."""

    root: Path
    """Where it is, for messages."""
    manifest: dict[str, Any]
    """The request, and what each stage was made from."""

    @property
    def request(self) -> dict[str, Any]:
        """The settings for which the run was made."""
        return self.manifest["request"]

    @property
    def stages(self) -> list[str]:
        """Names of the finished stages, in the order in which they were made."""
        return list(self.manifest["stages"])

    @abstractmethod
    def has(self, stage: str) -> bool:
        """Whether a stage is recorded as finished."""

    @abstractmethod
    def check(self, stage: str) -> None:
        """Raise unless a stage is finished and as it was made."""

    def intact(self, stage: str) -> bool:
        """Whether a stage is finished and as it was made."""
        return self.has(stage)

    @abstractmethod
    def shelf(self, stage: str) -> Shelf:
        """What a finished stage holds, as it was made."""

    @abstractmethod
    def make(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        fill: Callable[[Shelf], None],
        *,
        fresh: bool = False,
    ) -> bool:
        """Make a stage whole or not at all; True when it was made, False when it existed.

        Args:
            stage: its name, e.g. ``adapters/clean``.
            inputs: everything that decides the result, as JSON-able values.
            fill: puts the result on the shelf that it is given.
            fresh: make it even when it exists.
        """

    @abstractmethod
    def make_rows(
        self, stage: str, inputs: Mapping[str, Any], make: "Callable[[], Sequence[Row]]"
    ) -> bool:
        """The same for a stage that is one set of rows, e.g. ``data/negative_set.jsonl``."""

    @abstractmethod
    def rows(self, stage: str) -> "list[Row]":
        """The rows of a finished stage that is one set of them."""

    @abstractmethod
    def partial(self, stage: str, inputs: Mapping[str, Any], *, fresh: bool = False) -> Path:
        """A folder for checkpoints of an unfinished stage, kept until the stage is done."""

    @abstractmethod
    def locked(self, *, fresh: bool = False, wait: float = 0) -> "AbstractContextManager[Run]":
        """Hold the run for this process; with `fresh`, start it over from nothing."""

    def side_by_side(self, pieces: Sequence[Callable[[], Any]], *, jobs: int) -> None:
        """Make stages, `jobs` at a time where each can have a process of its own.

        Args:
            pieces: functions that make them, none of which needs what another one makes.
            jobs: how many at a time.
        """
        for piece in pieces:
            piece()

    @abstractmethod
    def where(self, stage: str) -> str:
        """Where a stage is, in words."""

    def inputs(self, stage: str) -> dict[str, Any]:
        """What a finished stage was made from."""
        return self.manifest["stages"][stage]["inputs"]

    def seconds(self, stage: str) -> float:
        """How long a finished stage took, in seconds of wall time."""
        return float(self.manifest["stages"][stage]["seconds"])

    def digest(self, *stages: str) -> dict[str, str]:
        """One digest per finished stage, to name it as another's input.

        Raises:
            RunError: one is not finished, or not as it was made.
        """
        for stage in stages:
            self.check(stage)
        return {stage: self._digest(stage) for stage in stages}

    def _digest(self, stage: str) -> str:
        files = self.manifest["stages"][stage]["files"]
        return hashlib.sha256(dumps(files).encode()).hexdigest()[:16]

    def up_to_date(self, stage: str, inputs: Mapping[str, Any], *, fresh: bool = False) -> bool:
        """Whether a stage exists, whole and made from these inputs.

        Raises:
            RunError: it was made from other inputs, or a file differs from its checksum.
        """
        if fresh or not self.has(stage):
            return False
        if changed := changes(self.inputs(stage), jsonable(dict(inputs))):
            raise RunError(
                f"{self.where(stage)} was made from other inputs ({changed}); use --fresh (in "
                "Python: fresh=True) to make "
                "it again"
            )
        self.check(stage)
        return True

    def differs(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a finished stage was made from other inputs than these."""
        return self.has(stage) and bool(changes(self.inputs(stage), jsonable(dict(inputs))))

    def stale(self, stage: str) -> str:
        """Which input of a finished stage was made again since, in words; empty when none was."""
        waiting, seen = [stage], set[str]()
        while waiting:
            made = waiting.pop()
            seen.add(made)
            for source, digest in self.inputs(made).get("from", {}).items():
                if not self.has(source) or self._digest(source) != digest:
                    return f"{made} was made from an earlier {source}"
                waiting += [source] * (source not in seen)
        return ""


def changes(old: Any, new: Any) -> str:
    """The first few differences between two JSON values, in words; empty when there are none."""
    found = list(_differences(old, new, ""))
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """Each difference with its place; checksums, which say nothing to people, are not shown."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    elif old != new:
        sums = any(isinstance(v, str) and re.fullmatch(r"[0-9a-f]{16,64}", v) for v in (old, new))
        yield f"another {where}" if sums else f"{where}: {str(old)[:60]} -> {str(new)[:60]}"
