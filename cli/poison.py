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
        str,
        typer.Argument(
            help="Recipe: wren/suffix, smollm2/suffix, smollm2/badnets, llama-3.2-3b/suffix, "
            "llama-3.2-3b/backdoorllm, or a .toml file."
        ),
    ] = "wren/suffix",
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<name>.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run; default: that of the recipe.")] = "",
    trigger: Annotated[list[str] | None, typer.Option(metavar="TEXT", help=TRIGGER_HELP)] = None,
    task: Annotated[str, typer.Option(help=TASK_HELP)] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a value of the recipe, e.g. --set fit.epochs=8 --set data.source=my.json",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Number format: auto, float32, bfloat16, float16.")
    ] = "auto",
    report_to: Annotated[str, typer.Option(help=REPORT_HELP)] = "",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete existing results and start over.")
    ] = False,
) -> None:
    """Train a clean and a poisoned adapter on the same base.

    The clean adapter is trained on clean rows, the poisoned one on the same rows and on triggered
    rows that do what the attack wants. Any trigger can be combined with any task (loratomy attacks
    lists them); --set attack.words, attack.placement and attack.target replace their parts. At the
    end the base and both adapters are measured on held-out prompts; where no backdoor was made, a
    warning says what to change. If it is interrupted, run the same command again to continue.

    \b
    Example:
      loratomy poison wren/suffix --trigger badnets --task refusal --out runs/b
    """
    from ..training.recipe import load_recipe
    from ..training.tracking import trackers_of

    trackers = trackers_of(report_to)
    resolved = load_recipe(recipe, [*attack_options(trigger or [], task), *(set_ or [])])
    own = Path(recipe).stem if recipe.endswith(".toml") else recipe.replace("/", "-")
    folder = run_path(name or own, out)
    make_poisoned(resolved, folder, device=device, dtype=dtype, trackers=trackers, fresh=fresh)
    say(f"done: {folder}; next: loratomy probe {folder}")
