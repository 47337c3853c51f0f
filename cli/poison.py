"""`loratomy poison`: make a clean and a poisoned adapter on one base."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.console import say
from ..core.files.outputs import run_path
from ..verbs.poisoning import attack_options, make_poisoned
from .options import REPORT_HELP, TASK_HELP, TRIGGER_HELP

if TYPE_CHECKING:
    pass


def command(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe or a path that ends in .toml.")
    ] = "wren/suffix",
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<name>.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run; default: the recipe's.")] = "",
    trigger: Annotated[list[str] | None, typer.Option(metavar="TEXT", help=TRIGGER_HELP)] = None,
    task: Annotated[str, typer.Option(help=TASK_HELP)] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override, e.g. --set fit.epochs=8 --set data.source=my.json",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    report_to: Annotated[str, typer.Option(help=REPORT_HELP)] = "",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete existing results and start over.")
    ] = False,
) -> None:
    """Fit a clean and a poisoned adapter on the same base and write their data sets.

    Clean rows teach the clean adapter; the poisoned one sees 100 more that carry the trigger and do
    what the attack wants. Any trigger goes with any task (loratomy attacks lists them);
    attack.words, attack.placement and attack.target replace their parts. At the end base, clean and
    poisoned adapter are measured on the held-out prompts, and a warning says what to change where
    that is no backdoor. Killed at any moment, the same command continues.

    Example: loratomy poison wren/suffix --set attack.trigger=badnets --set attack.task=refusal
    """
    from ..training.recipe import load_recipe
    from ..training.tracking import trackers_of

    trackers = trackers_of(report_to)
    resolved = load_recipe(recipe, [*attack_options(trigger or [], task), *(set_ or [])])
    own = Path(recipe).stem if recipe.endswith(".toml") else recipe.replace("/", "-")
    folder = run_path(name or own, out)
    make_poisoned(resolved, folder, device=device, dtype=dtype, trackers=trackers, fresh=fresh)
    say(f"done: {folder}; next: loratomy probe {folder}")
