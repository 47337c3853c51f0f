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
    """The options of a bench, as they were written."""

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
        """The same as a command line, after the program's name."""
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


def run_bench(options: BenchOptions, *, table: bool = False, one: str = "") -> Table | None:
    """Make the cells of a bench, or go on with them; returns its table, written.

    Args:
        options: cells, methods, seeds, folder.
        table: run nothing, write the table of what is there.
        one: key of the one cell to make, for another process that keeps the table (then None).

    Raises:
        LoratomyError: something that is wanted does not exist, or the folder holds something
            else.
    """
    if processes.count() > 1:
        raise LoratomyError("a bench is one process, which takes --jobs; start it without launcher")
    cells, wanted = _cells(options), entries(options.methods)
    _check_out(options.out, cells, table=table)
    later = _aftermath(options, wanted, cells)
    if one:
        _make(options, next(cell for cell in cells if cell.key == one), wanted, later)
        return None
    made = Table(options.out, cells, wanted, later)
    if table:
        return made
    with _held(options):
        about = {"cells": [cell.label for cell in cells], "entries": [e.name for e in wanted]}
        about |= {"seeds": options.seeds, "aftermath": later}
        note_piece(options.out, options.command, about)
        _run(options, made)
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


def _cells(options: BenchOptions) -> list[Cell]:
    """The subjects, in the order in which they are made."""
    if not options.runs:
        for pair in options.overrides:
            if (key := pair.partition("=")[0].strip()) in TAKEN:
                raise LoratomyError(f"--set {key}: the bench sets it; see --cells and --seeds")
        return attack_cells(options.cells, seeds=options.seeds, out=options.out)
    given = {"--cells": options.cells, "--recipe": options.recipe, "--set": options.overrides}
    if clash := [option for option, value in given.items() if value]:
        raise LoratomyError(f"{clash[0]} with run folders: it is for attacks that the bench makes")
    return run_cells(options.runs, seeds=options.seeds)


def _aftermath(options: BenchOptions, wanted: Sequence[Entry], todo: Sequence[Cell]) -> list[str]:
    """The entries whose aftermath is wanted.

    Raises:
        LoratomyError: one that is neither wanted nor there in any cell.
    """
    later = list(dict.fromkeys(n.strip() for n in options.aftermath.split(",") if n.strip()))
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
def _held(options: BenchOptions) -> Iterator[None]:
    """The bench for this process alone.

    Raises:
        RunError: another one holds it.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    else_ = ", look with --table, or take another --out"
    with held(options.out, name=".bench.lock", else_=else_, command=options.command):
        yield


def _run(options: BenchOptions, made: Table) -> None:
    """All cells, some at a time; the table is written anew after each."""
    count = 0

    def ended(cell: Cell, failure: str) -> None:
        nonlocal count
        count += 1
        if failure:
            note_whole(options.out, cell, failure)
        for line in made.update(cell):
            say(f"  not there: {line}")
        end = "failed" if failure or cell in made.broken else "done"
        say(f"{count} of {len(made.cells)} cells: {cell.label} {end}")

    if options.jobs == 1:
        for cell in made.cells:
            say(f"cell {cell.label}")
            _make(options, cell, made.wanted, made.later)
            ended(cell, "")
        return
    run_cells_apart(
        made.cells,
        jobs=options.jobs,
        out=options.out,
        command=lambda cell: [*program(), *options.arguments("--one", cell.key)],
        ended=ended,
    )


def _make(options: BenchOptions, cell: Cell, wanted: Sequence[Entry], later: Sequence[str]) -> None:
    """One cell with everything in it; what cannot be made is noted, and the others go on."""
    from ..training.recipe import load_recipe
    from ..verbs.poisoning import make_poisoned

    try:
        if cell.attack is not None:
            trigger, task = cell.attack
            own = [f"attack.trigger={trigger}", f"attack.task={task}", f"seed={cell.seed}"]
            resolved = load_recipe(
                options.recipe or RECIPE, [*own, "fit.evaluations=0", *options.overrides]
            )
            if cell.begun:
                with RunFolder.open(cell.folder).locked(wait=ORPHANS):
                    pass  # a process of a bench that was killed ends within this time
            make_poisoned(resolved, cell.folder)
        with RunFolder.open(cell.folder).locked(wait=ORPHANS):
            pass  # a run that another process holds is one line, not one for every entry
        write_notes(options.out, cell, make_entries(cell, wanted))
        measure_cell(cell.folder)
        write_notes(options.out, cell, {f"aftermath of {n}": _after(cell, n) for n in later})
    except GAVE_UP as error:
        note_whole(options.out, cell, reason(error))
    else:
        note_whole(options.out, cell, "")


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
