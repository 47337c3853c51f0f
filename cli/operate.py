"""`loratomy operate`: change the adapter, into a new one."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import LoratomyError
from ..core.runs import RunFolder
from .console import out as stdout
from .console import progress, say
from .sources import write_rendering
from .study import Study, done, parse_pairs

if TYPE_CHECKING:
    from ..core.results import Operation

RESERVED = ("base", "clean", "poisoned")


def command(
    run: Annotated[Path | None, typer.Argument(help="Run folder made by poison or open.")] = None,
    method: Annotated[str, typer.Argument(help="Name of a method; see --list.")] = "guided",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Option of the method, e.g. --set budget=0.01."),
    ] = None,
    after: Annotated[
        str, typer.Option(help="Operate on the result of an earlier operation, e.g. guided.")
    ] = "",
    as_: Annotated[
        str, typer.Option("--as", help="Name of the result; default: the method's.")
    ] = "",
    list_: Annotated[
        bool, typer.Option("--list", help="List methods and their options, then stop.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Make the operation again.")] = False,
) -> None:
    """Map the poisoned adapter to a new adapter folder in plain PEFT format.

    guided finds and cuts the smallest set of singular directions; repair follows it up; negative
    is negative fine-tuning; truncate, prune, mask, project, project-difference are cuts by rule;
    control-* are what a cut has to beat. Nothing is overwritten without --fresh.

    Examples: loratomy operate runs/x guided --set budget=0.01 · loratomy operate runs/x repair
    --after guided · loratomy operate runs/x mask --set layers=[2,3] --as no-2-3
    """
    if list_:
        _list()
        return
    if run is None:
        raise LoratomyError("give the run folder, e.g. loratomy operate runs/demo guided")
    record = operate_run(run, method, parse_pairs(set_ or []), after=after, name=as_, fresh=fresh)
    say(f"{record.subject}: {record.summary}")
    say(f"done: {run / 'operations' / record.subject / 'adapter'}; next: loratomy compare {run}")


def _list() -> None:
    from rich.table import Table

    from ..unlearning import METHODS

    table = Table("method", "what it does", "options (defaults)", "source")
    for name, method in METHODS.items():
        options = [
            f"{key}={'' if field.is_required() else field.default}"
            for key, field in method.config.model_fields.items()
        ]
        table.add_row(name, method.about, "\n".join(options), method.source)
    stdout.print(table)


def operate_run(
    folder: Path,
    method: str,
    options: dict[str, Any],
    *,
    after: str = "",
    name: str = "",
    control_for: str = "",
    fresh: bool = False,
) -> "Operation":
    """Make one operation of a run, or find it standing; returns its record."""
    from ..core.records import load_record
    from ..core.results import Operation
    from ..training.recipe import validated
    from ..unlearning import METHODS, check_needs

    config = validated(METHODS[method].config, options, f"method {method}")
    label = name or (f"{after}-{method}" if after else method)
    if label in RESERVED or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", label):
        raise LoratomyError(
            f"--as {label[:40]!r}: use up to 80 letters, digits, '.', '-', '_', and none of "
            + ", ".join(RESERVED)
        )
    study = Study(RunFolder.open(folder))
    check_needs(method, **study.has)
    if after and not study.run.has(f"operations/{after}"):
        known = study.operations
        hint = f"operations so far: {', '.join(known)}" if known else "there are none yet"
        raise LoratomyError(f"--after {after!r}: no such operation; {hint}")
    sources = ["data", "adapters/poisoned", *study.negative_stage]
    sources += [f"operations/{name}" for name in (after, control_for) if name]
    inputs = {
        **study.origin(*sources),
        "method": method,
        "config": config.model_dump(),
        "control_for": control_for,
    }
    stage = f"operations/{label}"
    with study.run.locked(), progress():

        def write(work: Path) -> None:
            checkpoints = study.run.partial(stage, inputs, fresh=fresh)
            made = _operate(study, method, config, label, after, control_for, checkpoints)
            _write(study, made, work)

        done(study.run, stage, study.run.stage(stage, inputs, write, fresh=fresh))
        return load_record(Operation, study.run.path(stage), "operation")


def _operate(
    study: Study, method: str, config: Any, label: str, after: str, control_for: str, work: Path
) -> Any:
    from ..core.records import load_record
    from ..core.results import Operation
    from ..unlearning import Bench, operate

    before = None
    start = study.poisoned
    if after:
        start = study.adapter(f"operations/{after}")
        before = load_record(Operation, study.run.path(f"operations/{after}"), "operation")
    bench = Bench(
        subject=study.subject,
        poisoned=study.poisoned,
        start=start,
        clean=study.clean,
        clean_train=study.rows("clean_train"),
        poison_train=study.rows("poison_train") if study.has["trigger"] else [],
        negative=study.rows("negative_set") if study.negative_stage else [],
        rule=study.rule,
        seed=study.asked["seed"],
        work=work,
    )
    return operate(method, bench, config, subject=label, control_for=control_for, before=before)


def _write(study: Study, made: Any, folder: Path) -> None:
    from ..core.records import save_record
    from ..core.treated import ADAPTER, write_treated

    state, record = made
    write_treated(state, folder, base=study.asked["base"])
    if state.adapter is not None:
        write_rendering(study.subject.renderer, folder / ADAPTER)
    save_record(record, folder, "operation")
