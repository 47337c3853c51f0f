"""`loratomy report`: one HTML file that explains the run; reads records, never a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import LoratomyError, RunError
from ..core.records import load_record
from ..core.results import (
    Curves,
    Provenance,
    RunRecords,
    Setting,
)
from ..core.runs import RunFolder
from .console import say
from .measuring import (
    load_answers,
    load_comparison,
    load_operations,
    load_planted,
    measured,
)
from .probe import STAGE, load_stage, standing

_OWN_TARGETS = "each row's own target"


def command(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    formats: Annotated[
        str, typer.Option(help="Formats of the single figures: html, png, pdf, svg.")
    ] = "html",
    out: Annotated[
        Path | None, typer.Option(help="Write the report here instead of RUN/report.html.")
    ] = None,
) -> None:
    """Write report.html (self-contained, opens offline) and each figure alone under figures/.

    Shows what has been computed so far: run probe, operate and compare first for the whole story.

    Example: loratomy report runs/demo --formats html,png,svg
    """
    path = report_run(run, formats=[f.strip() for f in formats.split(",") if f.strip()], out=out)
    say(f"done: {path}")


def report_run(folder: Path, *, formats: list[str], out: Path | None = None) -> Path:
    """Write the report and the figures of a run; returns the report's path."""
    from ..figures import draw, report_html, write_figures, write_page

    run = RunFolder.open(folder)
    path = out or run.root / "report.html"
    if not path.parent.is_dir():
        raise LoratomyError(f"the folder {path.parent} does not exist; make it first")
    if wrong := run.verify():
        raise RunError(f"{wrong[0]}; make that stage again with --fresh")
    for stage in run.manifest["stages"]:
        if old := run.stale(stage):
            raise RunError(f"{old}; make it again with --fresh, or remove its folder")
    records = load_records(run)
    with run.locked():
        write_page(report_html(records), path)
        exported = write_figures(draw(records), run.root / "figures", formats)
    for line in exported.skipped:
        say(line)
    return path


def load_records(run: RunFolder) -> RunRecords:
    """Everything that stands in a run, as the figures want it."""
    curves = [
        load_record(Curves, run.path(f"adapters/{name}"), "curves")
        for name in ("clean", "poisoned")
        if (run.path(f"adapters/{name}") / "curves.json").exists()
    ]
    names, told = measured(run), load_planted(run)
    study = run.asked["study"]
    return RunRecords(
        provenance=_provenance(run),
        trigger=" / ".join(study["words"]) or "none given",
        target=study["target"] or (_OWN_TARGETS if study["words"] else "none given"),
        curves=tuple(curves),
        comparison=load_comparison(run) if names else None,
        answers=tuple(a for name in names for a in load_answers(run, name)),
        analyses=(
            *(r for name in standing(run) for r in load_stage(run, STAGE + name)),
            *([told] if told else []),
        ),
        operations=tuple(load_operations(run).values()),
    )


def _provenance(run: RunFolder) -> Provenance:
    manifest = run.manifest
    facts = [
        ("base", json.dumps(run.asked["base"], ensure_ascii=False)),
        ("seed", str(run.asked["study"]["seed"])),
        ("made", str(manifest["created"])),
        ("machine", str(manifest["machine"])),
        *((f"version of {k}", v) for k, v in manifest["versions"].items()),
    ]
    for stage in ("adapters/clean", "adapters/poisoned"):
        if run.has(stage):
            files = manifest["stages"][stage]["files"]
            weights = files.get("adapter_model.safetensors", "")
            facts.append((f"SHA-256 of {stage}", weights))
    facts.append(("asked", json.dumps(run.asked["study"], ensure_ascii=False)))
    return Provenance(
        run=str(manifest["name"]),
        command=str(manifest["command"]),
        facts=tuple(Setting(name=k, value=v) for k, v in facts),
    )
