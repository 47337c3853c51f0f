"""The cells of a bench: attacks on a recipe, or run folders, each at every seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from urllib.parse import quote

from ..core.errors import LoratomyError, RunError
from ..core.registry import nearest
from ..core.runs.folder import MANIFEST, RunFolder

CELLS = "cells"
"""Folder of a bench with the runs that it poisons."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One subject of the bench."""

    folder: Path
    """Of its run."""
    name: str
    """In the table: ``trigger/task``, or of the run folder."""
    attack: tuple[str, str] | None
    """Trigger and task that are planted there; None for a run that was given."""
    seed: int
    """Of everything, or of the operations in a run that was given."""
    own: bool
    """Whether that is the run's own seed; operations of another one carry it in their name."""

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.name} s{self.seed}"

    @property
    def key(self) -> str:
        """Names the cell, and its files in the bench's folder; no two cells share it."""
        return self.folder.name if self.attack else f"{quote(self.name, safe='')}-s{self.seed}"

    @property
    def begun(self) -> bool:
        """Whether there is a run."""
        return (self.folder / MANIFEST).exists()

    @property
    def operations_seed(self) -> int | None:
        """Seed to operate with; None: the run's own."""
        return None if self.own else self.seed

    @property
    def suffix(self) -> str:
        """What the names of its operations end in."""
        return "" if self.own else f"-s{self.seed}"


def attack_cells(text: str, *, seeds: int, out: Path) -> list[Cell]:
    """Cells of attacks such as ``suffix/fixed,badnets/*``; empty: every trigger with every task.

    Raises:
        LoratomyError: an unknown trigger or task, or a pattern without both.
    """
    from ..data.attacks.tasks import TASKS
    from ..data.attacks.triggers import TRIGGERS

    pairs: dict[tuple[str, str], None] = {}
    for part in (p.strip() for p in (text or "*/*").split(",") if p.strip()):
        trigger, slash, task = (p.strip() for p in part.partition("/"))
        if not slash:
            raise LoratomyError(f"--cells {part}: write TRIGGER/TASK, e.g. suffix/fixed or vpi/*")
        for kind, given, known in (("trigger", trigger, TRIGGERS), ("task", task, TASKS)):
            if given != "*" and given not in known:
                hint = nearest(given, list(known))
                raise LoratomyError(f"--cells {part}: unknown {kind} {given!r}; {hint}")
        triggers = list(TRIGGERS) if trigger == "*" else [trigger]
        pairs |= dict.fromkeys(product(triggers, list(TASKS) if task == "*" else [task]))
    if not pairs:
        raise LoratomyError(f"--cells {text!r} names no cell; e.g. suffix/fixed")
    return [
        Cell(out / CELLS / f"{t}-{k}-s{seed}", f"{t}/{k}", (t, k), seed, own=True)
        for seed in range(seeds)
        for t, k in pairs
    ]


def other_cells(out: Path, cells: Sequence[Cell]) -> int:
    """How many attacks stand in a bench that are none of some cells."""
    wanted = {cell.folder.resolve() for cell in cells}
    stand = {path.parent.resolve() for path in (out / CELLS).glob(f"*/{MANIFEST}")}
    return len(stand - wanted)


def run_cells(folders: Sequence[Path], *, seeds: int) -> list[Cell]:
    """Cells of run folders: each with its own seed, then with others, from 0.

    Raises:
        LoratomyError: a folder that is no run, was made by neither poison nor open, has no trigger,
            or is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    names = [path.name for path in paths]
    found: list[tuple[int, Cell]] = []
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise LoratomyError(f"{folder} is given twice; leave one out")
        name = path.name if names.count(path.name) == 1 else str(path)
        own = _usable(RunFolder.open(folder))
        others = (seed for seed in range(seeds) if seed != own)
        for turn, seed in enumerate([own, *others][:seeds]):
            found.append((turn, Cell(folder, name, None, seed, own=seed == own)))
    return [cell for _, cell in sorted(found, key=lambda pair: pair[0])]


def _usable(run: RunFolder) -> int:
    """The seed of a run that a bench can be made of.

    Raises:
        LoratomyError: it has no triggered prompts, or none for operations.
    """
    study = run.request.get("study")
    if not isinstance(study, dict):
        raise RunError(f"{run.root} does not say what it studies; remake it with --fresh")
    if run.request.get("kind") not in ("poison", "open"):
        raise LoratomyError(
            f"{run.root} was made by {run.request.get('kind')}: a bench takes runs of poison and "
            "open"
        )
    if not study["words"]:
        raise LoratomyError(
            f"{run.root} was opened without a trigger, and a bench measures on triggered prompts: "
            f"open another run with --trigger TEXT (loratomy probe {run.root} --only candidates "
            "looks for candidates)"
        )
    return int(study["seed"])
