"""A bench: its cells made some at a time, in this process or in others, and its table kept up."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..core import processes
from ..core.console import say
from ..core.errors import LoratomyError, RunError
from ..core.files.outputs import check_folder_out
from ..core.files.paths import check_plain, check_tree
from ..core.registry import nearest
from ..core.runs.folder import RunFolder
from ..core.runs.locks import held
from ..core.runs.manifest import outside_runs
from ..study import load
from .cells import CELLS, Cell, attack_cells, run_cells
from .entries import GAVE_UP, Entry, Failure, entries, make_entries, measure_cell, reason
from .failures import FOLDER, note_whole, write_notes
from .jobs import LOGS, program, run_cells_apart
from .provenance import FILE, note_piece, read_pieces
from .table import NAME, Table

RECIPE = "wren/suffix"
ORPHANS = 5.0
"""Seconds to wait for a cell that another process holds."""
TAKEN = ("attack.trigger", "attack.task", "attack.words", "seed")
"""What of a recipe the bench decides itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What a bench is asked for, as it was written."""

    runs: tuple[Path, ...]
    cells: str
    methods: str
    seeds: int
    out: Path
    recipe: str
    overrides: tuple[str, ...]
    aftermath: str
    jobs: int

    def arguments(self, *more: str) -> list[str]:
        """The command line that asks for it, after the program's name."""
        options = {"--cells": self.cells, "--methods": self.methods, "--recipe": self.recipe}
        options |= {"--aftermath": self.aftermath, "--out": str(self.out)}
        given = [part for option, value in options.items() if value for part in (option, value)]
        given += ["--seeds", str(self.seeds), "--jobs", str(self.jobs)]
        given += [part for pair in self.overrides for part in ("--set", pair)]
        runs = [str(folder) for folder in self.runs]
        return ["bench", *given, *more, *(["--", *runs] if runs else [])]

    @property
    def command(self) -> str:
        """The same for a person to copy."""
        return shlex.join(["loratomy", *self.arguments()])


def run_bench(asked: BenchOptions, *, table: bool = False, one: str = "") -> Table | None:
    """Make what is asked for, or go on with it; returns its table, written.

    Args:
        asked: cells, methods, seeds, folder.
        table: run nothing, write the table of what stands.
        one: key of the one cell to make, for another process that keeps the table (then None).

    Raises:
        LoratomyError: something that is asked for does not exist, or the folder holds something
            else.
    """
    if processes.count() > 1:
        raise LoratomyError("a bench is one process, which takes --jobs; start it without launcher")
    cells, wanted = _cells(asked), entries(asked.methods)
    _check_out(asked.out, cells, table=table)
    later = _aftermath(asked, wanted, cells)
    if one:
        _make(asked, next(cell for cell in cells if cell.key == one), wanted, later)
        return None
    made = Table(asked.out, cells, wanted, later)
    if table:
        return made
    with _held(asked):
        about = {"cells": [cell.label for cell in cells], "entries": [e.name for e in wanted]}
        about |= {"seeds": asked.seeds, "aftermath": later}
        note_piece(asked.out, asked.command, about)
        _run(asked, made)
    return made


def _check_out(out: Path, todo: Sequence[Cell], *, table: bool) -> None:
    """Raise where a bench must not be in a folder.

    Raises:
        RunError: nothing is there to be read; it is inside a run; it holds links or pipes; it holds
            files under the names of a bench's that no bench wrote.
    """
    if table and not out.is_dir():
        raise RunError(f"{out} does not exist; give the folder of a bench with --out")
    check_folder_out(out)
    outside_runs(out)
    results = [f"{NAME}{end}" for end in (".parquet", ".csv", ".html")]
    check_tree(out, [LOGS, FOLDER, FILE, *results, ".bench.lock"], own=[LOGS, ".bench.lock"])
    for folder in (out / CELLS, *(cell.folder for cell in todo if cell.attack is not None)):
        check_plain(folder)
    if not read_pieces(out):
        for name in results:
            if (out / name).exists():
                raise RunError(
                    f"{out / name} is there already and was not written by a bench; move it away, "
                    "or take another --out"
                )


def _cells(asked: BenchOptions) -> list[Cell]:
    """The subjects that are asked for, in the order in which they are made."""
    if not asked.runs:
        for pair in asked.overrides:
            if (key := pair.partition("=")[0].strip()) in TAKEN:
                raise LoratomyError(f"--set {key}: the bench sets it; see --cells and --seeds")
        return attack_cells(asked.cells, seeds=asked.seeds, out=asked.out)
    given = {"--cells": asked.cells, "--recipe": asked.recipe, "--set": asked.overrides}
    if clash := [option for option, value in given.items() if value]:
        raise LoratomyError(f"{clash[0]} with run folders: it is for attacks that the bench makes")
    return run_cells(asked.runs, seeds=asked.seeds)


def _aftermath(asked: BenchOptions, wanted: Sequence[Entry], todo: Sequence[Cell]) -> list[str]:
    """The entries whose aftermath is asked for.

    Raises:
        LoratomyError: one that is neither asked for nor stands in any cell.
    """
    later = list(dict.fromkeys(n.strip() for n in asked.aftermath.split(",") if n.strip()))
    known = {entry.name for entry in wanted}
    if set(later) - known:
        for cell in (cell for cell in todo if cell.begun):
            stages = RunFolder.open(cell.folder).manifest["stages"]
            names = [s.removeprefix("operations/") for s in stages if s.startswith("operations/")]
            known |= {name.removesuffix(cell.suffix) for name in names}
    for name in later:
        if name not in known:
            hint = nearest(name.replace("+", "-"), sorted(known))
            raise LoratomyError(f"--aftermath {name}: no entry of this bench; {hint}")
    return later


@contextmanager
def _held(asked: BenchOptions) -> Iterator[None]:
    """The bench for this process alone.

    Raises:
        RunError: another one holds it.
    """
    asked.out.mkdir(parents=True, exist_ok=True)
    else_ = ", look with --table, or take another --out"
    with held(asked.out, name=".bench.lock", else_=else_, command=asked.command):
        yield


def _run(asked: BenchOptions, made: Table) -> None:
    """All cells, some at a time; the table is written anew after each."""
    count = 0

    def ended(cell: Cell, failure: str) -> None:
        nonlocal count
        count += 1
        if failure:
            note_whole(asked.out, cell, failure)
        for line in made.update(cell):
            say(f"  not there: {line}")
        end = "failed" if failure or cell in made.broken else "done"
        say(f"{count} of {len(made.cells)} cells: {cell.label} {end}")

    if asked.jobs == 1:
        for cell in made.cells:
            say(f"cell {cell.label}")
            _make(asked, cell, made.wanted, made.later)
            ended(cell, "")
        return
    run_cells_apart(
        made.cells,
        jobs=asked.jobs,
        out=asked.out,
        command=lambda cell: [*program(), *asked.arguments("--one", cell.key)],
        ended=ended,
    )


def _make(asked: BenchOptions, cell: Cell, wanted: Sequence[Entry], later: Sequence[str]) -> None:
    """One cell with everything in it; what cannot be made is noted, and the others go on."""
    from ..training.recipe import load_recipe
    from ..verbs.poisoning import make_poisoned

    try:
        if cell.attack is not None:
            trigger, task = cell.attack
            own = [f"attack.trigger={trigger}", f"attack.task={task}", f"seed={cell.seed}"]
            resolved = load_recipe(
                asked.recipe or RECIPE, [*own, "fit.evaluations=0", *asked.overrides]
            )
            if cell.begun:
                with RunFolder.open(cell.folder).locked(wait=ORPHANS):
                    pass  # a process of a bench that was killed ends within this time
            make_poisoned(resolved, cell.folder)
        with RunFolder.open(cell.folder).locked(wait=ORPHANS):
            pass  # a run that another process holds is one line, not one for every entry
        write_notes(asked.out, cell, make_entries(cell, wanted))
        measure_cell(cell.folder)
        write_notes(asked.out, cell, {f"aftermath of {n}": _after(cell, n) for n in later})
    except GAVE_UP as error:
        note_whole(asked.out, cell, reason(error))
    else:
        note_whole(asked.out, cell, "")


def _after(cell: Cell, name: str) -> dict[str, Failure]:
    """Relearning and transfer of an entry; what of them could not be made."""
    from ..core.records.io import load_record
    from ..core.records.results import Operation
    from ..verbs.aftermath import TRANSFER, aftermath

    run, operation = RunFolder.open(cell.folder), f"operations/{name}{cell.suffix}"
    line = f"aftermath of {name}"
    if not run.has(operation):
        return {line: Failure(f"{name} is not there", False)}
    made = load_record(Operation, run.read(operation), "operation")
    plain = made.leaves == "adapter" and made.temperature is None
    try:
        aftermath(load(cell.folder), of=[f"{name}{cell.suffix}"], only=[] if plain else [TRANSFER])
    except GAVE_UP as error:
        return {line: Failure(reason(error), False)}
    return {} if plain else {line: Failure("it leaves no adapter alone: no relearning", False)}
