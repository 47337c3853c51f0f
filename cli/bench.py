"""`loratomy bench`: every method on every attack, beside its controls, on held-out prompts."""

from pathlib import Path
from typing import Annotated

import typer

from ..bench.cells import CELLS, other_cells
from ..bench.run import RECIPE, BenchOptions, run_bench
from ..core.console import say
from ..core.errors import RunError
from ..core.files.outputs import out_path
from .options import Plugin
from .tables.bench import show


def command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders to use as subjects; default: attacks on the recipe."),
    ] = None,
    cells: Annotated[
        str, typer.Option(help="TRIGGER/TASK, comma-separated, * for all of one; default: all 30.")
    ] = "",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, comma-separated; A+B is B after A, e.g. guided+repair. Default: all."
        ),
    ] = "",
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds of each cell, from 0; of a run, its own first.")
    ] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the bench.")] = Path("runs/bench"),
    recipe: Annotated[
        str, typer.Option(help=f"Recipe behind the attacks; default: {RECIPE}.")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override of the recipe, as for poison."),
    ] = None,
    aftermath: Annotated[
        str,
        typer.Option(help="Entries to relearn and transfer too, e.g. guided-repair,negative."),
    ] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, a process each.")] = 1,
    table: Annotated[
        bool,
        typer.Option(
            "--table",
            help="Run nothing: write table and page of what stands, also while a bench runs.",
        ),
    ] = False,
    one: Annotated[str, typer.Option(hidden=True)] = "",
    plugin: Plugin = None,
) -> None:
    """Run attack x task x method x seed, cell by cell, and write table, leaderboard and figures.

    Each cell is a run folder below OUT/cells: a subject is poisoned (or a given run taken), every
    method operates on it, each cut with random and spectrum cuts of its budget and each fit with
    plain fine-tuning of its steps beside it, and all are measured on held-out prompts. Killed at
    any moment, the same command goes on; more methods, cells or seeds add to what stands.

    OUT/bench.parquet and bench.csv hold a line per subject and entry, OUT/bench.html the findings,
    OUT/bench.json where they come from.

    Example: loratomy bench --cells "suffix/fixed,badnets/*" --methods guided,guided+repair,negative
    """
    out = out_path(out)
    options = BenchOptions(
        runs=tuple(runs or ()),
        cells=cells,
        methods=methods,
        seeds=seeds,
        out=out,
        recipe=recipe,
        overrides=tuple(set_ or ()),
        aftermath=aftermath,
        jobs=jobs,
    )
    made = run_bench(options, table=table, one=one)
    if made is None:
        return
    show(made.write())
    if others := other_cells(out, made.cells):
        say(
            f"{others} more cells stand in {out / CELLS} and were not asked for, so that they are "
            "not in the table; --table with --cells '*/*' and their --seeds reads them too"
        )
    say(f"done: {out / 'bench.parquet'}, bench.csv; open {out / 'bench.html'}")
    if broken := [cell.label for cell in made.broken]:
        raise RunError(
            f"{len(broken)} of {len(made.cells)} cells could not be made or read whole: "
            f"{', '.join(broken[:6])}{' ...' if len(broken) > 6 else ''}; see the lines above, and "
            "run the same command again to go on"
        )
