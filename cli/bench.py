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
        typer.Argument(help="Run folders to use; default: plant the attacks of --cells."),
    ] = None,
    cells: Annotated[
        str,
        typer.Option(
            help="Attacks to plant, as TRIGGER/TASK, comma-separated; * is any trigger or task; "
            "default: all 30."
        ),
    ] = "",
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, comma-separated; A+B applies B after A, e.g. guided+repair; "
            "default: all."
        ),
    ] = "",
    seeds: Annotated[
        int,
        typer.Option(
            min=1, help="Seeds per cell: 0, 1, 2 ...; for a run folder its own seed first."
        ),
    ] = 1,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("runs/bench"),
    recipe: Annotated[
        str, typer.Option(help=f"Recipe to plant the attacks with; default: {RECIPE}.")
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a value of the recipe, as for poison."
        ),
    ] = None,
    aftermath: Annotated[
        str,
        typer.Option(
            help="Run loratomy aftermath for these operations too, e.g. guided-repair,negative."
        ),
    ] = "",
    jobs: Annotated[
        int, typer.Option(min=1, help="Cells to run at the same time, each in its own process.")
    ] = 1,
    table: Annotated[
        bool,
        typer.Option(
            "--table",
            help="Run nothing: write table and page from existing results. Also works while a "
            "bench is running.",
        ),
    ] = False,
    one: Annotated[str, typer.Option(hidden=True)] = "",
    plugin: Plugin = None,
) -> None:
    """Run attack x task x method x seed and write a leaderboard.

    Each cell is one attack and seed, kept as a run folder in OUT/cells, or a run folder that you
    give. Every method is applied to it beside its controls: random and largest singular directions
    of the same budget for cuts, plain fine-tuning of the same steps for trained methods. All
    results are measured on held-out prompts. If it is interrupted, run the same command again to
    continue; more methods, cells or seeds add to the existing results.

    OUT/bench.parquet and bench.csv have one row per cell and operation, OUT/bench.html the
    leaderboard and figures, OUT/bench.json commands, commits and machines.

    \b
    Example:
      loratomy bench --cells "suffix/fixed,badnets/*" --methods guided,negative
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
            f"{others} more cells in {out / CELLS} are not in the table, because the command does "
            "not name them; --table --cells '*/*' with their --seeds adds them"
        )
    say(f"done: {out / 'bench.parquet'}, bench.csv; open {out / 'bench.html'}")
    if broken := [cell.label for cell in made.broken]:
        raise RunError(
            f"{len(broken)} of {len(made.cells)} cells could not be made or read whole: "
            f"{', '.join(broken[:6])}{' ...' if len(broken) > 6 else ''}; see the lines above, and "
            "run the same command again to go on"
        )
