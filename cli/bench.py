"""`loratomy bench`: every method on every attack, beside its controls, on held-out prompts."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.bench import BenchTable
from ..core.errors import LoratomyError, RunError
from ..core.registry import nearest
from ..core.runs import RunFolder
from .benched import entries, make_cell, rows_of
from .console import say

if TYPE_CHECKING:
    from ..core.bench import BenchRow

FAILED = "failed.txt"
"""In a cell's folder beside the run: what could not be made there, a line each."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One subject of the bench."""

    folder: Path
    """Of its run."""
    attack: tuple[str, str] | None
    """Trigger and task that are planted there; None for a run that stands."""
    seed: int
    """Of everything, or of the operations in a run that stands."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{'/'.join(self.attack) if self.attack else self.folder} s{self.seed}"


def command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders to use as subjects; default: attacks on the recipe."),
    ] = None,
    cells: Annotated[
        str,
        typer.Option(help="TRIGGER/TASK, comma-separated, * for all of one; default: all 30."),
    ] = "*/*",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, comma-separated; A+B is B after A, e.g. guided+repair. Default: all."
        ),
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each cell, from 0.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the bench.")] = Path("runs/bench"),
    recipe: Annotated[str, typer.Option(help="Recipe behind the attacks.")] = "wren/suffix",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override of the recipe, as for poison.")
    ] = None,
    aftermath: Annotated[
        str,
        typer.Option(help="Entries to relearn and transfer too, e.g. guided-repair,negative."),
    ] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, a process each.")] = 1,
    table: Annotated[
        bool, typer.Option("--table", help="Only write the table of what stands.")
    ] = False,
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Run attack x task x method x seed, cell by cell, and write table, leaderboard and figures.

    Each cell is a run folder below OUT/cells: a subject is poisoned (or a given run taken), every
    method operates on it, each cut with random and spectrum cuts of its budget and each fit with
    plain fine-tuning of its steps beside it, and all are measured on held-out prompts. Killed at
    any moment, the same command goes on; more methods, cells or seeds add to what stands.

    OUT/bench.parquet and bench.csv hold a line per subject and entry, OUT/bench.html the findings.

    Example: loratomy bench --cells suffix/fixed,badnets/* --methods guided,guided+repair,negative
    """
    wanted = entries(methods)
    todo = _cells(runs or [], cells, seeds, out)
    if one:
        cell = next(
            c
            for c in todo
            if str(c.folder) == one.rpartition("@")[0] and c.seed == int(one.rpartition("@")[2])
        )
        _make(cell, wanted, recipe, set_ or [], aftermath)
        return
    with _held(out):
        if not table:
            _run(todo, jobs, wanted, recipe, set_ or [], aftermath, out)
        _write(todo, out)


def _cells(runs: Sequence[Path], text: str, seeds: int, out: Path) -> list[Cell]:
    """The subjects that were asked for.

    Raises:
        LoratomyError: an unknown trigger or task, or a pattern without both.
    """
    if runs:
        for folder in runs:
            RunFolder.open(folder)
        first = [Cell(folder, None, 0) for folder in runs]
        return [Cell(c.folder, None, s) for s in range(seeds) for c in first]
    from ..training.tasks import TASKS
    from ..training.triggers import TRIGGERS

    pairs: dict[tuple[str, str], None] = {}
    for part in (p.strip() for p in text.split(",") if p.strip()):
        trigger, slash, task = part.partition("/")
        if not slash:
            raise LoratomyError(f"--cells {part}: write TRIGGER/TASK, e.g. suffix/fixed or vpi/*")
        for given, known in ((trigger, TRIGGERS), (task, TASKS)):
            if given != "*" and given not in known:
                raise LoratomyError(f"--cells {part}: {given!r}: {nearest(given, list(known))}")
        some = [trigger] if trigger != "*" else list(TRIGGERS)
        pairs |= dict.fromkeys(product(some, [task] if task != "*" else list(TASKS)))
    if not pairs:
        raise LoratomyError("--cells names no cell; e.g. suffix/fixed")
    place = out / "cells"
    return [
        Cell(place / f"{t}-{k}-s{seed}", (t, k), seed) for seed in range(seeds) for t, k in pairs
    ]


@contextmanager
def _held(out: Path) -> Iterator[None]:
    """The bench for this process alone.

    Raises:
        RunError: another one holds it.
    """
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(out / ".bench.lock"), out / ".bench.holder"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        who = holder.read_text().strip() if holder.exists() else "another process"
        raise RunError(f"{out} is in use by {who}; wait for its end or take another --out") from (
            error
        )
    try:
        holder.write_text(f"process {os.getpid()} (loratomy {' '.join(sys.argv[1:])})\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _run(
    todo: Sequence[Cell], jobs: int, wanted: Any, recipe: str, overrides: list[str],
    aftermath: str, out: Path,
) -> None:  # fmt: skip
    """All cells, `jobs` at a time; the table is written anew after each."""
    if jobs == 1:
        for done, cell in enumerate(todo, 1):
            say(f"cell {done}/{len(todo)}: {cell.name}")
            _make(cell, wanted, recipe, overrides, aftermath)
            _write(todo, out, quiet=True)
        return
    logs = out / "logs"
    logs.mkdir(exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        going = {pool.submit(_child, cell, logs): cell for cell in todo}
        try:
            for done, future in enumerate(as_completed(going), 1):
                cell, code = going[future], future.result()
                ended = "done" if code == 0 else f"ended with {code}, see {logs}"
                say(f"cell {done}/{len(todo)}: {cell.name} {ended}")
                _write(todo, out, quiet=True)
        except BaseException:
            for future in going:
                future.cancel()
            raise


def _child(cell: Cell, logs: Path) -> int:
    """One cell in a process of its own, with this command's own options."""
    program = [sys.executable, "-m", "loratomy.cli.app", *sys.argv[1:]]
    threads = {"OMP_NUM_THREADS": "1", **os.environ}
    with (logs / f"{cell.folder.name}-s{cell.seed}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            [*program, "--one", f"{cell.folder}@{cell.seed}"],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=threads, check=False,
        )  # fmt: skip
    return done.returncode


def _make(cell: Cell, wanted: Any, recipe: str, overrides: list[str], aftermath: str) -> None:
    """One cell with everything in it."""
    from ..training.recipe import load_recipe
    from .poison import make_poisoned

    failures: list[str] = []
    seed = None
    if cell.attack is not None:
        trigger, task = cell.attack
        own = [f"attack.trigger={trigger}", f"attack.task={task}", f"seed={cell.seed}"]
        resolved = load_recipe(recipe, [*own, "fit.evaluations=0", *overrides])
        make_poisoned(resolved, cell.folder, device="auto", dtype="auto", fresh=False)
    elif cell.seed != RunFolder.open(cell.folder).asked["study"]["seed"]:
        seed = cell.seed
    make_cell(cell.folder, wanted, seed=seed, failed=failures.append)
    if aftermath:
        from .aftermath import aftermath_run

        aftermath_run(cell.folder, of=[n.strip() for n in aftermath.split(",") if n.strip()])
    for line in failures:
        say(f"  left out: {line}")
    note = cell.folder / FAILED
    if failures:
        note.write_text("\n".join(failures) + "\n", encoding="utf-8")
    else:
        note.unlink(missing_ok=True)


def _write(todo: Sequence[Cell], out: Path, *, quiet: bool = False) -> None:
    """Table, leaderboard and page of what stands."""
    from ..core.bench_table import write_bench_table
    from ..figures.bench import bench_html
    from ..figures.export import write_page
    from ..unlearning.goals import goals
    from ..unlearning.standing import standings

    found: list[BenchRow] = []
    missing: list[str] = []
    for cell in todo:
        try:
            name = "" if cell.attack else cell.folder.name
            own = None
            if not cell.attack and RunFolder.open(cell.folder).asked["study"]["seed"] != cell.seed:
                own = cell.seed
            found += rows_of(cell.folder, name, own)
        except LoratomyError as error:
            missing.append(f"{cell.name}: {error}")
        if (note := cell.folder / FAILED).exists():
            missing += [f"{cell.name}: {line}" for line in note.read_text().splitlines()]
    if not found:
        if quiet:
            return
        raise RunError(f"nothing is measured in {out} yet: {missing[0] if missing else ''}")
    paths = write_bench_table(out, "bench", found)
    relearning, transfer = _aftermath(todo)
    first = found[0]
    table = BenchTable(
        rows=tuple(found),
        standings=standings(found),
        goals=goals(found),
        relearning=tuple(relearning),
        transfer=tuple(transfer),
        held_out=f"{first.asr.n} triggered, {first.ftr.n} untriggered and {first.accuracy.n} clean "
        "prompts a subject",
        missing=tuple(missing),
    )
    write_page(bench_html(table), out / "bench.html")
    if not quiet:
        show(table)
        say(f"done: {paths[0]}, {paths[1]}; open {out / 'bench.html'}")


def _aftermath(todo: Sequence[Cell]) -> tuple[list[Any], list[Any]]:
    """What stands of relearning and transfer in the cells."""
    from .aftermath_stages import load_aftermath

    relearning, transfer = [], []
    for cell in todo:
        if (cell.folder / "run.json").exists():
            one, two = load_aftermath(RunFolder.open(cell.folder))
            relearning += one
            transfer += two
    return relearning, transfer


def show(table: BenchTable) -> None:
    """Leaderboard and goals on stdout."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from .console import out as stdout

    board = Table(
        title=f"means over {table.standings[0].n} subjects with 95 % intervals"
        if table.standings
        else "no entry was run on any subject",
        caption=f"held out: {table.held_out}; rank: Pareto, by ASR, perplexity, accuracy, seconds",
        box=SIMPLE_HEAD,
    )
    for head in ("rank", "entry", "n", "ASR %", "perplexity %", "accuracy", "seconds"):
        board.add_column(head, justify="left" if head == "entry" else "right", no_wrap=True)
    for item in table.standings:
        board.add_row(
            str(item.rank),
            escape(item.entry),
            str(item.n),
            _range(100 * item.asr),
            _range(100 * item.perplexity_change, sign=True),
            _range(100 * item.accuracy_change, sign=True),
            f"{item.seconds[0]:.1f}",
        )
    stdout.print(board)
    for goal in table.goals:
        mark = "reached" if goal.reached else "missed "
        met = goal.met
        stdout.print(
            f"{mark} {goal.name} ({goal.entry}): {met.value:.0%} of {met.n} "
            f"[{met.low:.0%}, {met.high:.0%}], wanted {goal.wanted:.0%}",
            markup=False,
            soft_wrap=True,
        )
    for line in table.missing:
        say(f"note: {line}")


def _range(values: Any, *, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    return f"{values[0]:{form}} [{values[1]:{form}}, {values[2]:{form}}]"
