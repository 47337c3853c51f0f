"""The report of a study: everything that was made of it, as records, figures and a page."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..core.console import say
from ..core.errors import LoratomyError, RunError
from ..core.records.goals import Goals
from ..core.records.rendering import RenderingChoice
from ..core.records.results import Curves, Provenance, RunRecords, Setting
from ..core.runs.folder import FIGURES, REPORT, RunFolder
from ..core.runs.run import Run
from ..inputs.rendering import RENDERING_RECORD
from ..study import Study
from .measuring import (
    MEASURED,
    load_answers,
    load_comparison,
    load_operations,
    load_planted,
    measured,
)
from .probing import STAGE, finished, load_stage

NO_GOALS = Goals()
_OWN_TARGETS = "each row's own target"


def report(
    study: Study,
    *,
    formats: Sequence[str],
    out: Path | None = None,
    fresh: bool = False,
    goals: Goals = NO_GOALS,
) -> Path:
    """Write the report of a study, and the figures of one in a folder; returns the report's path.

    Args:
        study: what is reported.
        formats: of the single figures: html, png, pdf, svg.
        out: path of the page; None: report.html in the run folder.
        fresh: replace a file there that is no page of this program's.
        goals: what operations are judged against, beside the published goals.

    Raises:
        RunError: something in the run was altered, or made from what was made again since.
    """
    from ..figures import check_page, draw_sections, report_html, write_figures, write_page

    run, home = study.run, study.run if isinstance(study.run, RunFolder) else None
    if out is None and home is None:
        raise LoratomyError("a study in memory has no folder for its report; give the file's path")
    path = out or study.run.root / REPORT
    check_page(path, fresh=fresh, home=home and home.root)
    if wrong := home.verify() if home else []:
        raise RunError(f"{wrong[0]}; make that stage again with --fresh")
    for stage in run.stages:
        if old := run.stale(stage):
            remedy = "compare the run again" if MEASURED in old else "make it again with --fresh"
            raise RunError(f"{old}; {remedy}, or remove its folder")
    records = replace(load_records(run), goals=goals)
    if home is None:
        write_page(report_html(records), path)
        return path
    with home.locked():
        drawn = draw_sections(records)
        write_page(report_html(records, drawn), path)
        figures = [figure for section in drawn.values() for figure in section]
        exported = write_figures(figures, home.path(FIGURES), list(formats))
        inside = path.resolve().is_relative_to(home.root.resolve())
        home.wrote([*exported.written, *[home.root / REPORT] * inside])
    for line in exported.skipped:
        say(line)
    return path


def load_records(run: Run) -> RunRecords:
    """The finished results of a run, as the figures take them."""
    learned = [run.shelf(s) for s in ("adapters/clean", "adapters/poisoned") if run.has(s)]
    curves = [shelf.get(Curves, "curves") for shelf in learned if "curves" in shelf.names]
    names, verdict = measured(run), load_planted(run)
    study = run.request["study"]
    return RunRecords(
        provenance=_provenance(run),
        trigger=" / ".join(study["words"]),
        target=study["target"] or (_OWN_TARGETS if study["words"] else ""),
        curves=tuple(curves),
        comparison=load_comparison(run) if names else None,
        answers=tuple(a for name in names for a in load_answers(run, name)),
        analyses=(
            *(r for name in finished(run) for r in load_stage(run, STAGE + name)),
            *([verdict] if verdict else []),
        ),
        operations=tuple(load_operations(run).values()),
        rendering=_choice(run),
    )


def _choice(run: Run) -> RenderingChoice | None:
    """How the rendering of the prompts was found, where it had to be."""
    shelf = run.shelf("data") if run.has("data") else None
    if shelf is None or RENDERING_RECORD not in shelf.names:
        return None
    return shelf.get(RenderingChoice, RENDERING_RECORD)


def _provenance(run: Run) -> Provenance:
    manifest = run.manifest
    facts = [
        ("base", json.dumps(run.request["base"], ensure_ascii=False)),
        ("seed", str(run.request["study"]["seed"])),
        ("made", str(manifest["created"])),
        ("machine", str(manifest["machine"])),
        *((f"version of {k}", v) for k, v in manifest["versions"].items()),
    ]
    for stage in ("adapters/clean", "adapters/poisoned"):
        if run.has(stage):
            files = manifest["stages"][stage]["files"]
            weights = files.get("adapter_model.safetensors", "")
            facts.append((f"SHA-256 of {stage}", weights))
    facts.append(("request", json.dumps(run.request["study"], ensure_ascii=False)))
    return Provenance(
        run=str(manifest["name"]),
        command=str(manifest["command"]),
        facts=tuple(Setting(name=k, value=v) for k, v in facts),
    )
