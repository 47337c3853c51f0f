"""The bench's table read from its cells: a line for all that is measured, and what is not there."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core.errors import LoratomyError, RunError
from ..core.records.bench import BenchRow, Relearning, Transfer
from ..core.records.io import load_record
from ..core.records.results import Behaviour, Operation, Paired
from ..core.runs.folder import RunFolder
from ..verbs.aftermath import load_aftermath
from ..verbs.measuring import MEASURED, measured
from .entries import Entry, Failures, controls
from .failures import WHOLE

if TYPE_CHECKING:
    from .cells import Cell

NOT_MADE, BEGUN, UNMEASURED = "not made yet", "begun, nothing is measured yet", "not measured yet"
REFERENCES = ("base", "clean", "poisoned")


@dataclass(frozen=True, slots=True)
class Reading:
    """What is there of a cell, and what is not."""

    rows: tuple[BenchRow, ...] = ()
    relearning: tuple[Relearning, ...] = ()
    transfer: tuple[Transfer, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    """What (empty: the whole cell) and why."""
    failed: tuple[str, ...] = ()
    """Entries that were tried there and gave up."""
    made_by: tuple[tuple[str, str], ...] = ()
    """Name and value of what made it: versions, machine."""
    broken: bool = False
    """Whether it could not be made, or something in it cannot be read."""


def read_cell(cell: "Cell", wanted: Sequence[Entry], notes: Failures) -> Reading:
    """Everything that is measured in a cell, checked against its checksums; nothing is written.

    Args:
        cell: of the bench.
        wanted: the entries of the bench.
        notes: what could not be made there.
    """
    whole = [("", failure.why) for failure in notes.get(WHOLE, {}).values()]
    if not cell.begun:
        return Reading(missing=tuple(whole or [("", NOT_MADE)]), broken=bool(whole))
    try:
        run = RunFolder.open(cell.folder)
        rows, wrong = rows_of(run, cell) if run.has("adapters/poisoned") else ([], [])
    except LoratomyError as error:
        return Reading(missing=(*whole, ("", f"cannot be read: {error}")), broken=True)
    broken = bool(whole or wrong)
    there = {row.entry for row in rows}
    known = [
        (what, failure.why)
        for names in notes.values()
        for what, failure in names.items()
        if what not in there or not failure.tried  # made by hand since
    ]
    made_by = _made_by(run)
    if not rows:
        missing = (*known, *wrong) or (("", BEGUN),)
        return Reading(missing=missing, made_by=made_by, broken=broken)
    mentioned = {what for what, _ in (*known, *wrong)}
    for name in _expected(run, cell, wanted, there):
        if name not in there | mentioned:
            has = run.has(f"operations/{name}{cell.suffix}")
            wrong.append((name, UNMEASURED if has else NOT_MADE))
    relearning, transfer, stale = _aftermath(run, cell)
    return Reading(
        rows=tuple(rows),
        relearning=tuple(relearning),
        transfer=tuple(transfer),
        missing=(*known, *wrong, *stale),
        failed=tuple(name for name in notes if name not in there and _gave_up(notes, name)),
        made_by=made_by,
        broken=broken,
    )


def _gave_up(notes: Failures, entry: str) -> bool:
    return entry in notes[entry] and notes[entry][entry].tried


def _expected(run: RunFolder, cell: "Cell", wanted: Sequence[Entry], there: set[str]) -> list[str]:
    """Names of the wanted entries and of the controls of those that are there."""
    names = []
    for entry in wanted:
        names.append(entry.name)
        if entry.name in there:
            stage = f"operations/{entry.name}{cell.suffix}"
            made = load_record(Operation, run.read(stage), "operation")
            names += [control.name for control in controls(entry, made)]
    return names


def _made_by(run: RunFolder) -> tuple[tuple[str, str], ...]:
    found = {("machine", str(run.manifest.get("machine")))}
    for stage in run.manifest["stages"].values():
        found.add(("code of the stages", str(stage.get("code", "not recorded"))))
        found |= {(f"version of {name}", str(value)) for name, value in stage["versions"].items()}
    return tuple(sorted(found))


def rows_of(run: RunFolder, cell: "Cell") -> tuple[list[BenchRow], list[tuple[str, str]]]:
    """The table's lines of one cell, and what is left out of them, with why.

    Of a run with operations of several seeds only those of the cell's seed are read, whatever their
    names are. What was altered, or measured before it was made again, is left out.
    """
    found: dict[str, tuple[dict[str, Any], Behaviour, Paired | None]] = {}
    wrong: list[tuple[str, str]] = []
    for name in measured(run):
        operated = name not in REFERENCES
        if operated and _seed_of(run, name) != cell.operations_seed:
            continue
        try:
            _check(run, f"{MEASURED}/{name}")
            about = _operated(run, cell, name) if operated else _reference(name)
            found[name] = (about, *_measure(run, name))
        except LoratomyError as error:
            entry = name.removesuffix(cell.suffix) if operated else name
            wrong.append((entry, str(error).replace(f"{run.root}/", "")))
    if "poisoned" not in found:
        return [], wrong
    before, place = found["poisoned"][1].clean_accuracy.value, _place(run, cell)
    rows = [
        BenchRow(
            **place,
            **about,
            asr=behaviour.asr,
            ftr=behaviour.ftr,
            accuracy=behaviour.clean_accuracy,
            accuracy_change=behaviour.clean_accuracy.value - before,
            accuracy_p=pair.accuracy_p if pair else 1.0,
            perplexity=behaviour.perplexity,
            perplexity_change=pair.perplexity_change if pair else 0.0,
            perplexity_low=pair.perplexity_low if pair else 0.0,
            perplexity_high=pair.perplexity_high if pair else 0.0,
            kl=behaviour.kl,
            kl_low=behaviour.kl_low,
            kl_high=behaviour.kl_high,
            kl_n=behaviour.kl_n,
            degenerate=behaviour.degenerate,
        )
        for about, behaviour, pair in found.values()
    ]
    return rows, wrong


def _check(run: RunFolder, stage: str) -> None:
    """Raise where a stage was altered, or made of something that was made again since."""
    run.up_to_date(stage, run.manifest["stages"][stage]["inputs"])
    if old := run.stale(stage):
        raise RunError(f"{old}; loratomy compare {run.root} --fresh measures it again")


def _measure(run: RunFolder, name: str) -> tuple[Behaviour, Paired | None]:
    folder = run.read(f"{MEASURED}/{name}")
    pair = None
    if "paired" in run.records(f"{MEASURED}/{name}"):
        pair = load_record(Paired, folder, "paired")
    return load_record(Behaviour, folder, "behaviour"), pair


def _seed_of(run: RunFolder, name: str) -> int | None:
    """Seed that an operation was made with; None: the run's own."""
    return run.manifest["stages"][f"operations/{name}"]["inputs"].get("seed")


def _place(run: RunFolder, cell: "Cell") -> dict[str, Any]:
    """The fields of a line that say where it is."""
    study, attack = run.request["study"], run.request.get("recipe", {}).get("attack", {})
    words = " / ".join(study["words"])
    named = words if attack.get("words") else attack.get("trigger") or words
    trigger, task = cell.attack or (named, study["task"])
    return {"cell": cell.name, "trigger": trigger, "task": task, "seed": cell.seed}


def _reference(name: str) -> dict[str, Any]:
    """The fields of a line that say what it is about, of one that no operation made."""
    return {
        **dict.fromkeys(("method", "control_for"), ""),
        **dict.fromkeys(("directions_cut", "directions_total"), 0),
        **dict.fromkeys(("seconds", "search_seconds"), 0.0),
        "entry": name,
        "kind": "reference",
        "change_norm": math.nan,
        "reached": True,
    }


def _operated(run: RunFolder, cell: "Cell", name: str) -> dict[str, Any]:
    """The same of an operation; its time is that of all that it took to come there."""
    from ..unlearning import METHODS

    chain = _chain(run, name)
    made = chain[0]
    return {
        "entry": name.removesuffix(cell.suffix),
        "method": made.method,
        "kind": METHODS[made.method].kind,
        "control_for": made.control_for.removesuffix(cell.suffix),
        "directions_cut": made.directions_cut,
        "directions_total": made.directions_total,
        "change_norm": made.change_norm,
        "reached": made.reached,
        "seconds": sum(one.seconds for one in chain),
        "search_seconds": sum(one.search_seconds for one in chain),
    }


def _chain(run: RunFolder, name: str) -> list[Operation]:
    """An operation, the one it went on from, and so on."""
    stage = f"operations/{name}"
    _check(run, stage)
    made = load_record(Operation, run.read(stage), "operation")
    sources = run.manifest["stages"][stage]["inputs"]["from"]
    earlier = [s.removeprefix("operations/") for s in sources if s.startswith("operations/")]
    before = [_chain(run, other) for other in earlier if other != made.control_for]
    return [made, *(one for chain in before for one in chain)]


def _aftermath(
    run: RunFolder, cell: "Cell"
) -> tuple[list[Relearning], list[Transfer], list[tuple[str, str]]]:
    """The results of relearning and transfer, under the names that the table has."""
    try:
        relearned, transferred = load_aftermath(run)
    except RunError as error:
        return [], [], [("aftermath", str(error))]

    def ours(entry: str) -> bool:
        if entry in REFERENCES:
            return cell.own
        return run.has(f"operations/{entry}") and _seed_of(run, entry) == cell.operations_seed

    def named(entry: str) -> dict[str, Any]:
        plain = entry if entry in REFERENCES else entry.removesuffix(cell.suffix)
        return {"cell": cell.name, "seed": cell.seed, "entry": plain}

    return (
        [replace(r, **named(r.entry)) for r in relearned if ours(r.entry)],
        [replace(t, **named(t.entry)) for t in transferred if ours(t.entry)],
        [],
    )
