"""`loratomy probe`: where does it live?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.console import say
from ..study import load
from ..verbs.probing import SIZES, probe
from .options import Plugin, parse_pairs

if TYPE_CHECKING:
    pass


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder made by poison or open.")],
    only: Annotated[
        str,
        typer.Option(
            help="Comma-separated analyses, e.g. patching,spectra; default: all that the run "
            "allows. loratomy analyses lists them."
        ),
    ] = "",
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of each kind to analyse.")] = SIZES[
        "prompts"
    ],
    target_tokens: Annotated[
        int, typer.Option(min=1, help="Number of first target tokens that metrics use.")
    ] = SIZES["target_tokens"],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set an option, as ANALYSIS.OPTION=VALUE, e.g. patching.metric=kl; loratomy "
            "analyses NAME explains them.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace existing results of these analyses.")
    ] = False,
    plugin: Plugin = None,
) -> None:
    """Locate the backdoor by analyses of activations and weights.

    Each analysis answers one question and writes its result to RUN/analysis/NAME. Held-out prompts
    are never used. Existing results are kept.

    Example: loratomy probe runs/wren-suffix --only where,spectra
    """  # fmt: skip
    names = [n.strip() for n in only.split(",") if n.strip()]
    sizes = {"prompts": prompts, "target_tokens": target_tokens}
    study = load(run)
    probe(study, names=names, options=parse_pairs(set_ or []), sizes=sizes, fresh=fresh)
    after = f"operate {run} guided" if study.settings.words else f"report {run}"
    say(f"done: {run / 'analysis'}; next: loratomy {after}")
