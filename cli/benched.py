"""The bench's cells and entries: what is made in each run folder, and the rows read from it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.bench import BenchRow
from ..core.errors import LoratomyError
from ..core.registry import nearest
from ..core.runs import RunFolder
from .measuring import load_comparison, load_operations, measure_run
from .operate import operate_run

if TYPE_CHECKING:
    from ..core.results import Operation

UNEXPLAINED = {"draws": 1, "path": False}
"""Options with which surgery only searches: the bench measures everybody on held-out prompts, and
the path and the stability of a cut are for who reads one run."""
LATER = ("repair", "plan")
"""Methods that only make sense after another, or with a hand-written file."""


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


def entries(text: str) -> list[Entry]:
    """The entries of a list such as ``guided,guided+repair,crow``; empty: every method.

    Raises:
        LoratomyError: an unknown method.
    """
    from ..unlearning import METHODS
    from ..unlearning.method import CONTROL

    if not text:
        plain = [n for n, m in METHODS.items() if m.kind != CONTROL and n not in LATER]
        optional = {"mask", "project"}  # they do nothing without being told what
        text = ",".join(n for n in plain if n not in optional)
        text += ",guided+repair,guided-unknown+repair"
    found: dict[str, Entry] = {}
    for part in (p.strip() for p in text.split(",") if p.strip()):
        before = ""
        for name in part.split("+"):
            if name not in METHODS:
                raise LoratomyError(f"--methods {part}: {nearest(name, list(METHODS))}")
            entry = Entry(name, before)
            found.setdefault(entry.name, entry)
            before = entry.name
    return list(found.values())


def controls(entry: Entry, made: "Operation") -> list[tuple[str, str, dict[str, Any]]]:
    """The equal-budget controls of a finished operation: name, method, options.

    A cut of directions has as many at random and as many by singular value beside it, another edit
    of the weights as much of the adapter's norm, a fit plain fine-tuning with its steps and rate.
    Guided surgery has the best single layer besides.
    """
    from ..unlearning import METHODS
    from ..unlearning.finetune import equal_budget
    from ..unlearning.method import BASELINE

    name, method = entry.name, METHODS[entry.method]
    if entry.method == "finetune" or method.kind == BASELINE:
        return []
    if (budget := equal_budget(made)) is not None:
        return [(f"{name}-plain", "control-finetune", budget)]
    size: dict[str, Any] = {"directions": made.directions_cut}
    if not made.directions_cut:
        if not made.change_norm > 0:
            return []  # nothing was changed, so that there is nothing to match
        size = {"change": made.change_norm}
    found = [(f"{name}-random", "control-random", size), (f"{name}-top", "control-top", size)]
    if entry.method == "guided":
        found.append((f"{name}-layer", "control-layer", {}))
    return found


def make_cell(
    folder: Path, wanted: Sequence[Entry], *, seed: int | None, failed: Callable[[str], None]
) -> None:
    """Every entry of a cell with its controls, then everybody measured; what stands is kept.

    Args:
        folder: of the run.
        wanted: entries, each after the one it goes on from.
        seed: of the operations, where it is not the run's own.
        failed: told of an operation that could not be made; the others go on.
    """
    from ..unlearning import METHODS

    for entry in wanted:
        fields = METHODS[entry.method].config.model_fields
        options = {k: v for k, v in UNEXPLAINED.items() if k in fields}
        suffix = "" if seed is None else f"-s{seed}"
        try:
            made = operate_run(
                folder,
                entry.method,
                options,
                after=entry.after and entry.after + suffix,
                name=entry.name + suffix,
                seed=seed,
            )
            for name, method, budget in controls(entry, made):
                operate_run(
                    folder,
                    method,
                    budget,
                    name=name + suffix,
                    control_for=entry.name + suffix,
                    seed=seed,
                )
        except LoratomyError as error:
            failed(f"{entry.name}{suffix}: {error}")
    measure_run(folder)


def rows_of(folder: Path, cell: str = "", seed: int | None = None) -> list[BenchRow]:
    """The table's lines of one run folder: everything that is measured in it.

    Args:
        folder: of the run.
        cell: its name in the table; empty: ``trigger/task`` of the run.
        seed: of the operations to read, where it is not the run's own.

    Raises:
        LoratomyError: nothing is measured there.
    """
    run = RunFolder.open(folder)
    comparison, made = load_comparison(run), load_operations(run)
    attack = run.asked.get("recipe", {}).get("attack", {})
    study = run.asked["study"]
    trigger = attack.get("trigger") or " / ".join(study["words"])
    paired = {p.subject: p for p in comparison.paired}
    before = next((r for r in comparison.rows if r.subject == "poisoned"), None)
    suffix = "" if seed is None else f"-s{seed}"
    found = []
    for row in comparison.rows:
        operation, pair = made.get(row.subject), paired.get(row.subject)
        if operation is not None and (
            not row.subject.endswith(suffix) or (_seeded(row.subject) and not suffix)
        ):
            continue
        moved = row.clean_accuracy.value - before.clean_accuracy.value if before else math.nan
        found.append(
            BenchRow(
                cell=cell or f"{trigger}/{study['task']}",
                trigger=trigger,
                task=study["task"],
                seed=study["seed"] if seed is None else seed,
                entry=row.subject.removesuffix(suffix) if operation else row.subject,
                method=operation.method if operation else "",
                kind=_kind(operation),
                control_for=operation.control_for.removesuffix(suffix) if operation else "",
                asr=row.asr,
                ftr=row.ftr,
                accuracy=row.clean_accuracy,
                accuracy_change=moved,
                accuracy_p=pair.accuracy_p if pair else 1.0,
                perplexity=row.perplexity,
                perplexity_change=pair.perplexity_change if pair else 0.0,
                perplexity_low=pair.perplexity_low if pair else 0.0,
                perplexity_high=pair.perplexity_high if pair else 0.0,
                degenerate=row.degenerate,
                directions_cut=operation.directions_cut if operation else 0,
                directions_total=operation.directions_total if operation else 0,
                change_norm=operation.change_norm if operation else math.nan,
                reached=operation.reached if operation else True,
                seconds=operation.seconds if operation else 0.0,
                search_seconds=operation.search_seconds if operation else 0.0,
            )
        )
    return found


def _seeded(name: str) -> bool:
    """Whether an operation's name says that its seed is not the run's."""
    head, found, number = name.rpartition("-s")
    return bool(head and found and number.isdigit())


def _kind(operation: "Operation | None") -> str:
    from ..unlearning import METHODS

    return "reference" if operation is None else METHODS[operation.method].kind
