"""The report of a study: everything that stands in it, as records, figures and a page."""

import json
from pathlib import Path

from .core.console import say
from .core.errors import RunError
from .core.records.io import load_record
from .core.records.rendering import RenderingChoice
from .core.records.results import Curves, Provenance, RunRecords, Setting
from .core.runs.folder import FIGURES, REPORT, RunFolder
from .measuring import load_answers, load_comparison, load_operations, load_planted, measured
from .probing import STAGE, load_stage, standing
from .rendering import RENDERING_RECORD
from .study import Study

_OWN_TARGETS = "each row's own target"


def report(
    study: Study, *, formats: list[str], out: Path | None = None, fresh: bool = False
) -> Path:
    """Write the report and the figures of a study; returns the report's path."""
    from .figures import check_page, draw, report_html, write_figures, write_page

    run = study.run
    path = out or run.path(REPORT)
    check_page(path, fresh=fresh, home=run.root)
    if wrong := run.verify():
        raise RunError(f"{wrong[0]}; make that stage again with --fresh")
    for stage in run.manifest["stages"]:
        if old := run.stale(stage):
            raise RunError(f"{old}; make it again with --fresh, or remove its folder")
    records = load_records(run)
    with run.locked():
        write_page(report_html(records), path)
        exported = write_figures(draw(records), run.path(FIGURES), formats)
        inside = path.resolve().is_relative_to(run.root.resolve())
        run.wrote([*exported.written, *[run.root / REPORT] * inside])
    for line in exported.skipped:
        say(line)
    return path


def load_records(run: RunFolder) -> RunRecords:
    """Everything that stands in a run, as the figures want it."""
    curves = [
        load_record(Curves, run.read(f"adapters/{name}"), "curves")
        for name in ("clean", "poisoned")
        if run.has(f"adapters/{name}") and "curves" in run.records(f"adapters/{name}")
    ]
    names, told = measured(run), load_planted(run)
    study = run.asked["study"]
    return RunRecords(
        provenance=_provenance(run),
        trigger=" / ".join(study["words"]),
        target=study["target"] or (_OWN_TARGETS if study["words"] else ""),
        curves=tuple(curves),
        comparison=load_comparison(run) if names else None,
        answers=tuple(a for name in names for a in load_answers(run, name)),
        analyses=(
            *(r for name in standing(run) for r in load_stage(run, STAGE + name)),
            *([told] if told else []),
        ),
        operations=tuple(load_operations(run).values()),
        rendering=_choice(run),
    )


def _choice(run: RunFolder) -> RenderingChoice | None:
    """How the rendering of the prompts was found, where it had to be."""
    if not run.has("data") or RENDERING_RECORD not in run.records("data"):
        return None
    return load_record(RenderingChoice, run.read("data"), RENDERING_RECORD)


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
