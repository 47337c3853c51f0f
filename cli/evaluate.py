"""`loratomy evaluate`: any adapter on any data, by any rule."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import LoratomyError
from ..core.rows import Row, rows_to_jsonl
from ..core.runs import MANIFEST, RunFolder, run_path
from .compare import show
from .console import progress, say
from .evaluated import OfAdapter, OfRun
from .measuring import measure_run
from .options import (
    BATCH_HELP,
    EMBEDDER_HELP,
    PLACEMENT_HELP,
    SCORERS_HELP,
    TASK_HELP,
    TRIGGER_HELP,
)
from .sources import copy_adapter, noted, recorded_rendering, run_name
from .study import Study, base_fingerprint, built_sets, digest, done, read_sets

HELD_OUT = ("poison_test", "clean_val")

if TYPE_CHECKING:
    from ..training.datasets import Attack
    from ..training.testsets import TestSets


def command(
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_ADAPTER",
            help="A run folder, a PEFT adapter folder, or the folder of an earlier evaluation.",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Prompts to evaluate on: a file in any format that loratomy data formats lists, a "
            "hub id, or a folder made by loratomy data build; default: the run's held-out sets."
        ),
    ] = "",
    clean: Annotated[
        str, typer.Option(help="Clean prompts with answers, likewise; default: those of --data.")
    ] = "",
    base: Annotated[
        str, typer.Option(help="Base model of an adapter folder: a folder, a hub id, or wren.")
    ] = "",
    trigger: Annotated[list[str] | None, typer.Option(help=TRIGGER_HELP)] = None,
    placement: Annotated[str, typer.Option(help=PLACEMENT_HELP)] = "",
    task: Annotated[str, typer.Option(help=TASK_HELP)] = "",
    target: Annotated[
        str, typer.Option(help="What triggered prompts lead to; default: each row's completion.")
    ] = "",
    format: Annotated[str, typer.Option(help="Format of --data, where it cannot be told.")] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Draw this many rows of each file, by the seed.")
    ] = None,
    scorers: Annotated[str, typer.Option(help=SCORERS_HELP)] = "",
    threshold: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Similarity of a hit; default 0.8.")
    ] = None,
    embedder: Annotated[str, typer.Option(help=EMBEDDER_HELP + " Default auto.")] = "",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; default 128, or the run's.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=10, help="0 (default) is greedy.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Nucleus of the sampling; default 1.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers to each prompt; default 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of sampling and draws.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help=BATCH_HELP + " Default 8192.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Plain template with {prompt}, or chat; default: that of the training."),
    ] = None,
    other_template: Annotated[
        bool, typer.Option(help="Allow another template than the adapter was trained with.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/<subject>-on-<data>.")] = (
        None
    ),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of objects instead of a table.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Start over, dropping what stands.")] = False,
) -> None:
    """Evaluate a run or any PEFT adapter on prompts of yours, and its base beside it.

    ASR, FTR, clean accuracy, perplexity and degeneration, with counts and intervals. Every answer
    is kept with its scores in analysis/measured/*/answers.parquet; another rule judges the same
    answers without generating: give the evaluation's folder and other --scorers.

    Examples: loratomy evaluate ./adapter --base ./llama --data test.json --trigger BadMagic

    loratomy evaluate runs/demo --scorers "seed,exact,not refusal and cosine >= 0.7"
    """
    judged = {"scorers": scorers or None, "threshold": threshold, "embedder": embedder or None}
    given = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "samples": samples,
        "batch_tokens": batch_tokens,
    }
    options = {
        "data": data,
        "clean": clean,
        "base": base,
        "trigger": trigger,
        "placement": placement,
        "task": task,
        "target": target,
        "format": format,
        "limit": limit,
        "seed": seed,
        "template": template,
        "other_template": other_template,
        "device": device,
        "dtype": dtype,
    }
    folder = subject
    is_run = (subject / MANIFEST).exists()
    changed = [v for v in (*given.values(), *options.values()) if v or (v == 0 and v is not False)]
    anew = fresh
    if not is_run or changed or out:
        folder = out or run_path(run_name(subject, data or "held-out"), None)
        if folder.resolve() == subject.resolve():
            raise LoratomyError(f"{folder} is what is to be evaluated; give another --out")
        source = OfRun(subject) if is_run else OfAdapter(subject, options)
        _prepare(source, folder, options, given, judged, fresh=fresh)
        anew = False
    comparison = measure_run(folder, **judged, fresh=anew)
    show(comparison, RunFolder.open(folder), as_json=as_json)
    say(f"answers with all scores: {folder}/analysis/measured/*/answers.parquet")


def _prepare(
    source: "OfRun | OfAdapter",
    folder: Path,
    options: dict[str, Any],
    given: dict[str, Any],
    judged: dict[str, Any],
    *,
    fresh: bool,
) -> None:
    """The evaluation's run folder: settings, prompts and adapters, before anything is measured."""
    study = _study(source, options, {**given, **judged})
    from ..analysis.asking import check_triggered

    attack, sets = _sets(source, study, options)
    study |= {
        "words": list(attack.trigger.words) if attack else [],
        "placement": attack.trigger.placement if attack else "",
        "target": options["target"] or (attack.target if attack else ""),
        "task": study["task"] or "fixed",
        "references": sets.references,
    }
    asked = {
        "kind": "evaluate",
        "study": study,
        "base": base_fingerprint(study["base"]),
        "adapters": source.sums(),
        "data": digest(sets.triggered),
        "clean": digest(sets.clean),
        "ignore_modules": source.ignored(),
    }
    for sentence in sets.said:
        say(sentence if sentence.startswith("warning") else f"note: {sentence}")
    fresh = fresh or _nothing_measured(folder)
    if not fresh:
        _keep_judgement(folder, asked, list(judged))
    run = RunFolder.create(folder, asked=asked, fresh=fresh)
    ready = Study(run, judged["scorers"], judged["threshold"], judged["embedder"])
    _check_targets(sets, ready)
    _ = ready.subject, ready.rule  # what cannot be loaded is an error before all writing
    words, new = study["words"], ready.rule.decoding.max_new_tokens
    if words:
        for line in check_triggered(ready.subject, sets.triggered, words, new_tokens=new):
            say(f"warning: {line}")
    _through_the_gate(source, ready, other_template=options["other_template"])
    with run.locked(fresh=fresh), progress():
        for name, path in source.sources().items():
            stage = f"adapters/{name}"
            made = run.stage(stage, asked["adapters"][name], partial(copy_adapter, path))
            done(run, stage, made)
        done(run, "data", run.stage("data", asked, partial(_write, ready, sets)))


def _keep_judgement(folder: Path, asked: dict[str, Any], names: list[str]) -> None:
    """Other rules for an evaluation that stands do not make it another one."""
    if (folder / MANIFEST).exists():
        old = RunFolder.open(folder).asked
        if old.get("kind") == "evaluate":
            known = old["study"]["measure"]
            asked["study"]["measure"] |= {name: known[name] for name in names}


def _nothing_measured(folder: Path) -> bool:
    """Whether an earlier evaluation there failed before its first answer, so nothing is lost."""
    if not (folder / MANIFEST).exists():
        return False
    run = RunFolder.open(folder)
    begun = any(stage.startswith("analysis/") for stage in run.manifest["stages"])
    return run.asked.get("kind") == "evaluate" and not begun


def _study(
    source: "OfRun | OfAdapter", options: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    from ..training.tasks import TASKS

    known = source.defaults
    trained, asked = source.template, options["template"]
    if trained is not None and asked is not None and asked != trained:
        line = f"the adapter was trained with the template {trained!r}, not {asked!r}"
        if not options["other_template"]:
            raise LoratomyError(f"{line}; to evaluate so all the same, add --other-template")
        say(f"warning: {line}")
    if options["base"] and options["base"] != known["base"]:
        raise LoratomyError(
            f"the run was made on the base {known['base']}, not {options['base']}; leave --base out"
        )
    if options["task"]:
        _ = TASKS[options["task"]]
    measure = {**known["measure"], **{k: v for k, v in given.items() if v is not None}}
    return {
        "base": known["base"],
        "template": asked if asked is not None else trained,
        "device": options["device"] or known["device"],
        "dtype": options["dtype"] or known["dtype"],
        "task": options["task"] or known["task"],
        "seed": known["seed"] if options["seed"] is None else options["seed"],
        "measure": measure,
    }


def _sets(
    source: "OfRun | OfAdapter", study: dict[str, Any], options: dict[str, Any]
) -> "tuple[Attack | None, TestSets]":
    from ..training.datasets import make_attack
    from ..training.formats import read_data
    from ..training.testsets import kept, own_trigger, test_sets
    from ..training.triggers import trigger_of

    known, seed, limit = source.defaults, study["seed"], options["limit"]
    if about := built_sets(Path(options["data"] or ".")) if options["data"] else {}:
        known = known | about  # the data's own attack, unless another one is given
        study["task"] = options["task"] or about["task"]
    trigger = None
    if options["trigger"]:
        trigger = trigger_of(options["trigger"], options["placement"] or None)
    elif known["words"]:
        trigger = own_trigger(known["words"], options["placement"] or known["placement"])
    target = options["target"] or ("" if options["task"] else known["target"])
    attack = None
    if trigger:
        attack = make_attack(trigger, study["task"] or "fixed", target=target or None, seed=seed)

    def read(what: str, format: str | None) -> list[Row]:
        with noted() as notes:
            stream = read_data(what, format=format, notes=notes)
            return kept(stream, limit=limit, seed=seed, what=what)

    data, calm = options["data"], []
    if not data or Path(data).is_dir():  # sets, whose rows are known to be triggered or clean
        sets = read_sets(Path(data), only=HELD_OUT) if data else source.sets()
        rows, calm = (kept(sets[name], limit=limit, seed=seed, what=name) for name in HELD_OUT)
    else:
        rows = read(data, options["format"] or None)
    calm = read(options["clean"], None) if options["clean"] else calm
    return attack, test_sets(rows, calm, attack, target=options["target"])


def _check_targets(sets: "TestSets", study: Study) -> None:
    from ..analysis.asking import check_targets

    check_targets(sets.triggered, study.success)


def _through_the_gate(source: "OfRun | OfAdapter", study: Study, *, other_template: bool) -> None:
    """Every adapter is whole, fits the base, and was trained with prompts rendered as here."""
    from ..core.adapters import read_adapter

    here = study.subject.renderer.text("{prompt}")
    for path in source.sources().values():
        read_adapter(path, study.subject.shapes, ignore_modules=source.ignored())
        known = recorded_rendering(path)
        if known and known.rendered != here and not other_template:
            raise LoratomyError(
                f"{path} was trained with prompts rendered as {known.rendered!r}, here they are "
                f"{here!r}; to evaluate so all the same, add --other-template"
            )


def _write(study: Study, sets: "TestSets", work: Path) -> None:
    """The sets; clean prompts without answer get the base's own."""
    from ..unlearning.distill import own_answers

    bare = [row for row in sets.clean if not row.completion]
    full = [row for row in sets.clean if row.completion]
    if bare:
        answered = own_answers(study.subject, bare, study.rule, label="the base's own answers")
        full += [row for row in answered if row.completion]
    if not full:
        raise LoratomyError("no clean prompt has an answer, and the base answers nothing to them")
    if lost := len(sets.clean) - len(full):
        say(f"warning: {lost} clean prompts left out, the base answers nothing to them")
    bad = [replace(row, completion=row.completion or row.target) for row in sets.triggered]
    (work / "poison_test.jsonl").write_text(rows_to_jsonl(bad), encoding="utf-8")
    (work / "clean_val.jsonl").write_text(rows_to_jsonl(full), encoding="utf-8")
