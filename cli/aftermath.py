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
        str, typer.Option(help=f"Comma-separated, of {', '.join(PARTS)}; default both.")
    ] = "",
    of: Annotated[
        str,
        typer.Option(help="Comma-separated operations, e.g. guided-repair,negative; default all."),
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="PART.OPTION=VALUE: relearning.steps, .learning_rate, .batch_size, .prompts, "
            "transfer.prompts, .near_misses.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of tables.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Make it again.")] = False,
) -> None:
    """What happens after removal: relearning, other forms of the trigger, false triggers.

    relearning trains on what an operation left, on clean rows and on the attacker's rows, and looks
    at ASR on held-out prompts at 0, 1, 2, 4, 8 ... steps. A new adapter on the base (and the clean
    adapter, where there is one) learn the attacker's rows beside it: what comes back sooner than
    they learn it had left traces. transfer asks the held-out prompts with the trigger elsewhere, in
    lower case, repeated, and with words that are not the trigger.

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
