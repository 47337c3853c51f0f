"""`loratomy aftermath`: does a removed backdoor come back, and what of it was left?"""

from pathlib import Path
from typing import Annotated

import typer

from ..core.console import out as stdout
from ..core.console import say, say_json
from ..study import load
from ..verbs.aftermath import PARTS, RELEARNING, TRANSFER, aftermath
from .options import parse_pairs
from .tables.aftermath import relearning_table, transfer_table


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder with operations.")],
    only: Annotated[
        str, typer.Option(help=f"Parts to run, comma-separated: {', '.join(PARTS)}; default: both.")
    ] = "",
    of: Annotated[
        str,
        typer.Option(
            help="Operations to test, comma-separated, e.g. guided-repair,negative; default: all."
        ),
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set an option, as PART.OPTION=VALUE: relearning.steps, .learning_rate, "
            ".batch_size or .prompts; transfer.prompts or .near_misses.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of tables.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace existing results.")] = False,
) -> None:
    """Test whether a removed backdoor comes back or partly remains.

    relearning trains the result of an operation further, once on clean rows and once on the
    attacker's rows, and measures ASR on held-out prompts after 0, 1, 2, 4, 8 ... steps. A new
    adapter on the base, and the clean adapter if there is one, learn the attacker's rows for
    comparison: a backdoor that returns sooner than these learn it had left traces. transfer
    measures held-out prompts with the trigger in other places, in lower case, repeated, and with
    other words.

    Example: loratomy aftermath runs/demo --of guided-repair,negative
    """
    relearned, transferred = aftermath(
        load(run), of=_listed(of), only=_listed(only), options=parse_pairs(set_ or []), fresh=fresh
    )
    if as_json:
        say_json({RELEARNING: relearned, TRANSFER: transferred})
        return
    if relearned:
        relearning_table(relearned).print(stdout)
    if transferred:
        transfer_table(transferred).print(stdout)
    say(f"done: {run / 'aftermath'}")


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
