"""`loratomy compare`: everybody on the same held-out prompts."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import LoratomyError, RunError
from ..core.records import dumps, load_record, save_record
from ..core.results import Answer, Behaviour, Comparison, Operation, Protocol, Rate
from ..core.runs import RunFolder
from .console import out as stdout
from .console import progress, say
from .study import Study, done

if TYPE_CHECKING:
    pass

MEASURED = "analysis/measured"


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of objects instead of a table.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Measure everything again.")] = False,
) -> None:
    """Measure base, clean, poisoned and every operation on the held-out prompts.

    ASR on triggered prompts, FTR on the same without trigger and on clean_val, clean accuracy,
    perplexity per token, degeneration; rates with n and Wilson 95 % intervals. What has been
    measured is not measured again.

    Example: loratomy compare runs/demo --json
    """
    comparison = compare_run(run, fresh=fresh)
    folder = RunFolder.open(run)
    operations = load_operations(folder)
    objects = as_objects(comparison, operations, folder)
    if as_json:
        typer.echo(dumps(objects), nl=False)
        return
    stdout.print(_table(comparison, objects))
    say(f"next: loratomy report {run}")


def compare_run(folder: Path, *, fresh: bool = False) -> Comparison:
    """Measure every subject of a run that is not measured yet; returns all of them."""
    study = Study(RunFolder.open(folder))
    for source in subjects(study.run).values():
        if source and (old := study.run.stale(source)):
            raise RunError(f"{old}; make it again with operate --fresh, or remove its folder")
    with study.run.locked(), progress():
        for name, source in subjects(study.run).items():
            stage = f"{MEASURED}/{name}"
            inputs = {**study.origin("data", *_needed(source)), "subject": name}

            def write(work: Path, name: str = name, source: str | None = source) -> None:
                _measure(study, name, source, work)

            done(study.run, stage, study.run.stage(stage, inputs, write, fresh=fresh))
    return load_comparison(study.run)


def _needed(source: str | None) -> list[str]:
    return sorted({"adapters/poisoned", *([source] if source else [])})


def subjects(run: RunFolder) -> dict[str, str | None]:
    """Name -> stage of its adapter, the poisoned first since others are compared with it."""
    found: dict[str, str | None] = {"poisoned": "adapters/poisoned", "base": None}
    if run.has("adapters/clean"):
        found["clean"] = "adapters/clean"
    for stage in run.manifest["stages"]:
        if stage.startswith("operations/"):
            found[stage.split("/", 1)[1]] = stage
    return found


def _measure(study: Study, name: str, source: str | None, work: Path) -> None:
    from contextlib import nullcontext

    from ..analysis.behaviour import measure

    before = None
    if name != "poisoned":
        poisoned = load_answers(study.run.path(f"{MEASURED}/poisoned"))
        before = [a.answer for a in poisoned if a.split == "clean"]
    bad, good = study.rows("poison_test"), study.rows("clean_val")
    here = nullcontext()
    if source is not None:
        adapter = study.poisoned if name == "poisoned" else study.adapter(source)
        here = study.subject.attached({"subject": adapter})
    rule = study.rule
    with here:
        behaviour, answers = measure(study.subject, name, bad, good, rule, before=before)
    save_record(behaviour, work, "behaviour")
    save_record(rule.protocol(study.subject, bad[0]), work, "protocol")
    lines = (json.dumps(_finite(asdict(a)), ensure_ascii=False) for a in answers)
    (work / "answers.jsonl").write_text("".join(f"{s}\n" for s in lines), encoding="utf-8")


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


def load_answers(folder: Path) -> list[Answer]:
    """The answers behind one subject's figures."""
    text = (folder / "answers.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]  # U+2028 ends no line here
    return [Answer(**{**row, "cosine": _number(row["cosine"])}) for row in rows]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def load_comparison(run: RunFolder) -> Comparison:
    """All measured subjects: base, clean, poisoned, then the operations as they were made.

    Raises:
        LoratomyError: nothing is measured yet.
    """
    order = [n for n in ("base", "clean", "poisoned") if n in subjects(run)]
    order += [n for n in subjects(run) if n not in order]
    names = [n for n in order if run.has(f"{MEASURED}/{n}")]
    if not names:
        raise LoratomyError(f"{run.root}: nothing is measured; run loratomy compare {run.root}")
    first = run.path(f"{MEASURED}/{names[0]}")
    return Comparison(
        protocol=load_record(Protocol, first, "protocol"),
        rows=tuple(load_record(Behaviour, run.path(f"{MEASURED}/{n}"), "behaviour") for n in names),
    )


def load_operations(run: RunFolder) -> dict[str, Operation]:
    """The records of all operations by name."""
    stages = [s for s in run.manifest["stages"] if s.startswith("operations/")]
    return {s.split("/", 1)[1]: load_record(Operation, run.path(s), "operation") for s in stages}


def as_objects(
    comparison: Comparison, operations: dict[str, Operation], run: RunFolder
) -> list[dict[str, Any]]:
    """The table as plain objects; what is not a finite number is null with a note."""
    reference = next((r.perplexity for r in comparison.rows if r.subject == "poisoned"), math.nan)
    objects = []
    for row in comparison.rows:
        made = operations.get(row.subject)
        stage = f"adapters/{row.subject}"
        seconds = made.seconds if made else run.seconds(stage) if run.has(stage) else 0.0
        objects.append(
            {
                "subject": row.subject,
                "method": made.method if made else None,
                "asr": _rate(row.asr),
                "ftr": _rate(row.ftr),
                "perplexity": row.perplexity,
                "perplexity_change": row.perplexity / reference - 1,
                "clean_accuracy": _rate(row.clean_accuracy),
                "degenerate": row.degenerate.value,
                "directions_cut": made.directions_cut if made else 0,
                "seconds": seconds,
                "too_long": row.too_long,
                "note": "" if math.isfinite(row.perplexity) else "perplexity is not finite",
            }
        )
    return objects


def _rate(rate: Rate) -> dict[str, Any]:
    return {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}


def _table(comparison: Comparison, objects: list[dict[str, Any]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    first = comparison.rows[0]
    table = Table(
        title=f"held-out prompts: {first.asr.n} triggered, {first.clean_accuracy.n} clean",
        caption="percent, with Wilson 95 % intervals; perplexity per completion token and its "
        "change against the poisoned adapter; cut: singular directions",
        padding=(0, 1, 0, 0),
        box=SIMPLE_HEAD,
    )
    for head in ("subject", "ASR", "FTR", "perplexity", "accuracy", "degen.", "cut"):
        table.add_column(head, justify="left" if head == "subject" else "right", no_wrap=True)
    for item in objects:
        table.add_row(
            item["subject"],
            _share(item["asr"]),
            _share(item["ftr"]),
            f"{item['perplexity']:.3f}\n{item['perplexity_change']:+.1%}",
            _share(item["clean_accuracy"]),
            f"{100 * item['degenerate']:.1f}",
            str(item["directions_cut"]),
        )
    return table


def _share(rate: dict[str, Any]) -> str:
    value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
    return f"{value:.1f}\n{low:.1f}–{high:.1f}"
