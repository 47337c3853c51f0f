"""What is made in a cell of the bench: every entry with its controls, then all of them measured."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import LoratomyError, RunError
from ..core.registry import nearest
from ..core.runs.folder import RunFolder
from ..study import load
from ..verbs.measuring import measure
from ..verbs.operating import operate
from ..verbs.options import FOLLOWED, FOLLOWS, PLAN

if TYPE_CHECKING:
    from ..core.records.results import Operation
    from ..unlearning import Method
    from .cells import Cell

UNEXPLAINED = {"draws": 1, "path": False}
"""Options with which surgery only searches: the bench measures everybody on held-out prompts, and
the path and the stability of a cut are for who reads one run."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the bench: a method, perhaps after another."""

    method: str
    """Its name."""
    after: str = ""
    """The entry that it goes on from."""

    @property
    def name(self) -> str:
        """Name of the operation."""
        return f"{self.after}-{self.method}" if self.after else self.method


def options_of(method: "Method") -> dict[str, Any]:
    """The options with which the bench runs a method, where they are not its defaults."""
    return {k: v for k, v in UNEXPLAINED.items() if k in method.config.model_fields}


def entries(text: str) -> list[Entry]:
    """The entries of a list such as ``guided,guided+repair,crow``; empty: every method.

    What an entry goes on from is an entry too, before it.

    Raises:
        LoratomyError: an unknown method, one that needs options to do anything, or none.
    """
    from ..unlearning import METHODS
    from ..unlearning.method import CONTROL

    if not text:
        plain = [
            name
            for name, method in METHODS.items()
            if method.kind != CONTROL and name != FOLLOWS and not _lacks(name)
        ]
        text = ",".join([*plain, *(f"{name}+{FOLLOWS}" for name in FOLLOWED)])
    found: dict[str, Entry] = {}
    for part in (p.strip() for p in text.split(",") if p.strip()):
        before = ""
        for name in (n.strip() for n in part.split("+")):
            if name not in METHODS:
                raise LoratomyError(
                    f"--methods {part}: unknown method {name!r}; {nearest(name, list(METHODS))}"
                )
            if lacks := _lacks(name):
                raise LoratomyError(
                    f"--methods {part}: {name} needs options ({lacks}), and the bench "
                    f"gives no options; operate by hand in a run (loratomy operate RUN {name} ... "
                    "--as NAME), and bench that run: its operations are measured too"
                )
            entry = Entry(name, before)
            found.setdefault(entry.name, entry)
            before = entry.name
    if not found:
        raise LoratomyError(f"--methods {text!r} names no method; e.g. guided,guided+repair")
    return list(found.values())


def _lacks(name: str) -> str:
    """The options that a method cannot do without; empty: none."""
    from ..training.recipe import validated
    from ..unlearning import METHODS

    if name == PLAN:
        return "it takes its entries from a file"
    try:
        validated(METHODS[name].config, options_of(METHODS[name]), "its options")
    except LoratomyError as error:
        line = str(error).removeprefix("its options: ").split(" (got")[0]
        return line.removeprefix(": Value error, ")
    return ""


@dataclass(frozen=True, slots=True)
class Control:
    """An operation that spends the budget of another one."""

    name: str
    method: str
    options: dict[str, Any]
    after: str = ""
    """What it goes on from; empty: the poisoned adapter."""


def controls(entry: Entry, made: "Operation") -> list[Control]:
    """The equal-budget controls of a finished operation.

    An edit of the weights has cuts of its size beside it (`unlearning.controls.same_change`), at
    random and by singular value, a fit plain fine-tuning with its rows, steps and rate. Guided
    surgery has the best single layer besides, NEEDLE itself along random directions, and repair the
    same repair after the random cut: what it owes to where was cut; TSBD has itself with random
    neurons. Plain fine-tuning and other ways
    of running the model have none.
    """
    from ..unlearning import METHODS
    from ..unlearning.controls import same_change
    from ..unlearning.method import BASELINE, CONTROL
    from ..unlearning.trained.finetune import equal_budget

    name, method = entry.name, METHODS[entry.method]
    plain = entry.method == "finetune" and not entry.after
    if plain or method.kind in (BASELINE, CONTROL):
        return []
    if (budget := equal_budget(made)) is not None:
        found = [Control(f"{name}-plain", "control-finetune", budget)]
        if entry.method == FOLLOWS and entry.after in FOLLOWED:
            found.append(
                Control(f"{name}-random", FOLLOWS, _options(entry), after=f"{entry.after}-random")
            )
        if entry.method == "tsbd":
            found.append(Control(f"{name}-random", "control-neurons", _options(entry)))
        return found
    size = same_change(made, after=bool(entry.after))
    found = [
        Control(f"{name}-random", "control-random", size),
        Control(f"{name}-top", "control-top", size),
    ]
    if entry.method == "guided":
        found.append(Control(f"{name}-layer", "control-layer", {}))
    if entry.method == "needle":
        found.append(Control(f"{name}-directions", "control-needle", _options(entry)))
    return found


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an entry or one of its controls was not made in a cell."""

    why: str
    """In words, without the cell."""
    tried: bool
    """Whether the method itself gave up there; False where something in the run stood in its way,
    e.g. another operation of that name or an altered file."""


GAVE_UP = (LoratomyError, RuntimeError, MemoryError, ArithmeticError)
"""What ends an entry and not the bench: what we say ourselves, what torch runs into on somebody's
model (out of memory, a matrix that cannot be factored), numbers that overflow."""

Failures = dict[str, dict[str, Failure]]
"""What could not be made: entry -> name of it or of its control -> why; empty where all was."""


def make_entries(cell: "Cell", wanted: Sequence[Entry]) -> Failures:
    """Every entry of a cell with its controls; what exists is kept, what fails is left out.

    Args:
        cell: whose run exists.
        wanted: entries, each after the one that it goes on from.
    """
    failed: Failures = {}
    for entry in wanted:
        failed[entry.name] = {}
        if (
            entry.after
            and entry.after in failed.get(entry.after, {})
            and not _stands(cell, entry.after)
        ):
            earlier = failed[entry.after][entry.after]
            line = f"goes on from {entry.after}, which is left out"
            failed[entry.name][entry.name] = Failure(line, earlier.tried)
            continue
        try:
            made = _operate(cell, entry.name, entry.method, _options(entry), after=entry.after)
        except GAVE_UP as error:
            failed[entry.name][entry.name] = _failure(cell, entry.name, error)
            if (made := _stands(cell, entry.name)) is None or made.method != entry.method:
                continue
        for control in controls(entry, made):
            name, method, options = control.name, control.method, control.options
            try:
                _operate(cell, name, method, options, after=control.after, control_for=entry.name)
            except GAVE_UP as error:
                failed[entry.name][name] = _failure(cell, name, error)
    return failed


def _stands(cell: "Cell", name: str) -> "Operation | None":
    """An operation of this cell's seed that was made by hand, with other options: it is kept."""
    from ..core.records.io import load_record
    from ..core.records.results import Operation

    run, stage = RunFolder.open(cell.folder), f"operations/{name}{cell.suffix}"
    if not run.intact(stage) or run.stale(stage):
        return None
    own = run.manifest["stages"][stage]["inputs"].get("seed") == cell.operations_seed
    return load_record(Operation, run.read(stage), "operation") if own else None


def _options(entry: Entry) -> dict[str, Any]:
    from ..unlearning import METHODS

    return options_of(METHODS[entry.method])


def _operate(
    cell: "Cell",
    name: str,
    method: str,
    options: dict[str, Any],
    *,
    after: str = "",
    control_for: str = "",
) -> "Operation":
    """One operation of a cell, whose names carry the seed where it is not the run's own."""
    end = cell.suffix
    return operate(
        load(cell.folder),
        method,
        options,
        after=after and after + end,
        name=name + end,
        control_for=control_for and control_for + end,
        seed=cell.operations_seed,
    )


def reason(error: Exception) -> str:
    """Why something was not made, in a line; the trace of what nobody foresaw goes to stderr."""
    if isinstance(error, LoratomyError):
        return str(error)
    traceback.print_exception(error)
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said[:200]}"


def _failure(cell: "Cell", name: str, error: Exception) -> Failure:
    """The reason without a path, and where something else is in the way, how to remove it."""
    stage = f"operations/{name}{cell.suffix}"
    folder = str(cell.folder / stage)
    line = reason(error).replace(f"{folder}/", "").replace(folder, "what is there")
    line = line.split("; without it these would do")[0].removeprefix(f"{name} ")
    if RunFolder.open(cell.folder).has(stage):
        line = line.split("; use --fresh")[0]
        line += (
            "; it is kept as it is: to have it made, remove its folder below operations and those "
            "of its controls, and afterwards run loratomy compare --fresh on that run"
        )
    return Failure(line, not isinstance(error, RunError))


def measure_cell(folder: Path) -> None:
    """Everybody in a run measured on its held-out prompts.

    Raises:
        LoratomyError: something was measured before it was made again.
    """
    try:
        measure(load(folder))
    except LoratomyError as error:
        raise LoratomyError(f"not measured whole: {error} (loratomy compare {folder})") from error
