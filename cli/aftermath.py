"""`loratomy aftermath`: does a removed backdoor come back, and what of it was left?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import LoratomyError, RunError
from ..core.records.bench import Relearning, Transfer
from ..core.registry import nearest
from ..core.runs.folder import RunFolder
from .aftermath_stages import BASE, CLEAN, PARTS, POISONED, RELEARNING, TRANSFER, Aftermath
from .aftermath_tables import relearning_table, transfer_table
from .console import out as stdout
from .console import progress, say, say_json
from .study import Study, parse_pairs

if TYPE_CHECKING:
    from ..core.config import Config


def command(
    run: Annotated[Path, typer.Argument(help="Run folder with operations.")],
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
            help="PART.OPTION=VALUE: relearning.steps, .learning_rate, .batch_size, .prompts, "
            "transfer.prompts, .near_misses.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of tables.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Make it again.")] = False,
) -> None:
    """What happens after removal: relearning, other forms of the trigger, false triggers.

    relearning trains on what an operation left, on clean rows and on the attacker's rows, and looks
    at ASR on held-out prompts at 0, 1, 2, 4, 8 ... steps. A new adapter on the base (and the clean
    adapter, where there is one) learn the attacker's rows beside it: what comes back sooner than
    they learn it had left traces. transfer asks the held-out prompts with the trigger elsewhere, in
    lower case, repeated, and with words that are not the trigger.

    Example: loratomy aftermath runs/demo --of guided-repair,negative
    """
    relearned, transferred = aftermath_run(
        run, of=_listed(of), only=_listed(only), options=parse_pairs(set_ or []), fresh=fresh
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


def aftermath_run(
    folder: Path,
    *,
    of: Sequence[str] = (),
    only: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> tuple[list[Relearning], list[Transfer]]:
    """Make what is asked of a run's aftermath, or find it standing; returns the records of it.

    Args:
        folder: of the run.
        of: operations; none: all, where those that leave no plain adapter have no relearning.
        only: of `PARTS`; none: both.
        options: ``part.option`` -> value.
        fresh: make it again.

    Raises:
        LoratomyError: an unknown operation, part or option; no operations; an operation named for
            relearning that leaves more than an adapter; one whose input was made again since.
    """
    for part in only:
        if part not in PARTS:
            raise LoratomyError(f"--only {part}: {nearest(part, list(PARTS))}")
    parts = [part for part in PARTS if part in only or not only]
    study = Study(RunFolder.open(folder))
    study.need_trigger("aftermath")
    after = Aftermath(study, _configs(options or {}, parts), fresh)
    entries = _entries(study, of)
    plain = entries
    if RELEARNING in parts:
        plain = [name for name in entries if study.treated(f"operations/{name}").plain]
        for name in entries:
            if name not in plain:
                _no_adapter(name, named=bool(of))
    relearned: list[Relearning] = []
    transferred: list[Transfer] = []
    with study.run.locked(), progress():
        if RELEARNING in parts:
            for name in [BASE, *[CLEAN] * study.run.has("adapters/clean"), *plain]:
                relearned += after.relearning(name)
        if TRANSFER in parts:
            after.transfer(POISONED)
            for name in entries:
                transferred += after.transfer(name)
    return relearned, transferred


def _configs(options: Mapping[str, Any], parts: Sequence[str]) -> "dict[str, Config]":
    """The options of the parts that are made."""
    from ..training.recipe import validated
    from ..unlearning.aftermath.relearning import RelearningConfig
    from ..unlearning.aftermath.transfer import TransferConfig

    given: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for key, value in options.items():
        part, found, option = key.partition(".")
        if not found or part not in parts:
            raise LoratomyError(f"--set {key}: write PART.OPTION=VALUE, of {', '.join(parts)}")
        given[part][option] = value
    kinds: dict[str, Any] = {RELEARNING: RelearningConfig, TRANSFER: TransferConfig}
    return {part: validated(kinds[part], given[part], part) for part in parts}


def _entries(study: Study, of: Sequence[str]) -> list[str]:
    """The operations that are asked about."""
    known = study.operations
    if not known:
        raise LoratomyError(
            f"{study.run.root} has no operation yet; make one, e.g. loratomy operate "
            f"{study.run.root} guided"
        )
    for name in of:
        if name not in known:
            raise LoratomyError(f"--of {name}: no such operation; {nearest(name, known)}")
    wanted = [name for name in known if name in of or not of]
    for name in wanted:
        if old := study.run.stale(f"operations/{name}"):
            raise RunError(f"{old}; make it again with operate --fresh, or remove its folder")
    return wanted


def _no_adapter(name: str, *, named: bool) -> None:
    line = f"{name} leaves more than an adapter, and relearning goes on from adapters alone"
    if named:
        raise LoratomyError(f"{line}; leave it out of --of, or give --only {TRANSFER}")
    say(f"{line}: left out of it")
