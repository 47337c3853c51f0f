"""`loratomy evaluate`: any adapter on any data, by any rule."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import LoratomyError
from ..core.files.outputs import check_apart
from ..core.records.rendering import RenderingChoice
from ..core.rows import rows_to_jsonl
from ..core.runs.folder import MANIFEST, RunFolder, run_path
from .compare import show
from .console import progress, say
from .evaluated import OfAdapter, OfRun
from .located import HUB_ID, located, of_size, other_base
from .measuring import measure_run
from .options import (
    BATCH_HELP,
    COLUMN_HELP,
    COMPLETIONS_HELP,
    EMBEDDER_HELP,
    OTHER_HELP,
    PLACEMENT_HELP,
    SCORERS_HELP,
    SKIP_HELP,
    SYSTEM_HELP,
    TASK_HELP,
    TEMPLATE_ARG_HELP,
    TEMPLATE_HELP,
    TRIGGER_HELP,
)
from .rendering import RENDERING_RECORD, Wanted, settled, tell, wanted
from .sources import copy_adapter, reading, run_name
from .study import (
    Study,
    base_fingerprint,
    base_folder,
    built_sets,
    digest,
    done,
    loaded_base,
    read_sets,
)

HELD_OUT = ("poison_test", "clean_val")

if TYPE_CHECKING:
    from ..core.model.subject import Subject
    from ..data.splits import Attack
    from ..data.testsets import TestSets


def command(
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_ADAPTER",
            help="A run folder, a PEFT adapter (folder or hub id), or the folder of an earlier "
            "evaluation.",
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
    column: Annotated[list[str] | None, typer.Option(help=COLUMN_HELP)] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help=SKIP_HELP)] = False,
    completions: Annotated[str, typer.Option(help=COMPLETIONS_HELP)] = "auto",
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
    ignore_module: Annotated[
        list[str] | None,
        typer.Option(help="Stored module, or copy of a weight, of an adapter folder to leave out."),
    ] = None,
    template: Annotated[str | None, typer.Option(help=TEMPLATE_HELP)] = None,
    system: Annotated[str | None, typer.Option(help=SYSTEM_HELP)] = None,
    template_arg: Annotated[list[str] | None, typer.Option(help=TEMPLATE_ARG_HELP)] = None,
    other_template: Annotated[bool, typer.Option(help=OTHER_HELP)] = False,
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
        "column": column,
        "skip_bad_rows": skip_bad_rows,
        "completions": "" if completions == "auto" else completions,
        "limit": limit,
        "seed": seed,
        "ignore_module": ignore_module,
        "template": template,
        "system": system,
        "template_arg": template_arg,
        "other_template": other_template,
        "device": device,
        "dtype": dtype,
    }
    folder = subject
    is_run = (subject / MANIFEST).exists()
    changed = [v for v in (*given.values(), *options.values()) if v or (v == 0 and v is not False)]
    anew = fresh
    if not is_run or changed or out:
        folder = run_path(run_name(subject, data or "held-out"), out)
        source = OfRun(subject) if is_run else OfAdapter(_adapter(subject), options)
        used = base or source.defaults["base"]
        check_apart(
            folder,
            [("the subject", subject), ("the base", base_folder(used) or used),
             ("--template", template), ("--embedder", embedder)],
            rows=[("--data", data), ("--clean", clean)],
        )  # fmt: skip
        _prepare(source, folder, options, given, judged, fresh=fresh)
        anew = False
    comparison = measure_run(folder, **judged, fresh=anew)
    show(comparison, RunFolder.open(folder), as_json=as_json)
    say(f"answers with all scores: {folder}/analysis/measured/*/answers.parquet")


def _adapter(given: Path) -> Path:
    if not given.is_dir() and (given.exists() or not HUB_ID.fullmatch(str(given))):
        raise LoratomyError(f"{given} is neither a run nor an adapter folder: no such folder")
    return located(given, "loratomy evaluate")


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
    from ..evaluation.collect import check_triggered

    attack, sets = _sets(source, study, options)
    study |= {
        "words": list(attack.trigger.words) if attack else [],
        "placement": attack.trigger.placement if attack else "",
        "target": options["target"] or (attack.target if attack else ""),
        "task": study["task"] or "fixed",
        "references": sets.references,
    }
    rendered = wanted(
        options["template"],
        options["system"],
        options["template_arg"],
        other=options["other_template"],
    )
    subject, choice = _rendered(source, study, sets, rendered)
    study["rendering"] = subject.renderer.rendering.model_dump(mode="json")
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
    with run.locked(fresh=fresh), progress():
        for name, path in source.sources().items():
            stage = f"adapters/{name}"
            sums = asked["adapters"][name]
            made = run.stage(stage, sums, partial(copy_adapter, path, sums))
            done(run, stage, made)
        done(run, "data", run.stage("data", asked, partial(_write, ready, sets, choice)))


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
    from ..data.attacks.tasks import TASKS

    known = source.defaults
    if options["base"] and options["base"] != known["base"]:
        raise LoratomyError(
            f"the run was made on the base {known['base']}, not {options['base']}; leave --base out"
        )
    if options["task"]:
        _ = TASKS[options["task"]]
    measure = {**known["measure"], **{k: v for k, v in given.items() if v is not None}}
    return {
        "base": known["base"],
        "device": options["device"] or known["device"],
        "dtype": options["dtype"] or known["dtype"],
        "task": options["task"] or known["task"],
        "seed": known["seed"] if options["seed"] is None else options["seed"],
        "measure": measure,
    }


def _sets(
    source: "OfRun | OfAdapter", study: dict[str, Any], options: dict[str, Any]
) -> "tuple[Attack | None, TestSets]":
    from ..data.attacks.tasks import TASKS
    from ..data.attacks.triggers import trigger_of
    from ..data.splits import make_attack
    from ..data.testsets import kept, own_trigger, test_sets

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
    given = options["task"] or (study["task"] if target or study["task"] != "fixed" else "")
    task = TASKS[given] if given else None
    attack = None
    if trigger:
        attack = make_attack(trigger, study["task"] or "fixed", target=target or None, seed=seed)
        if not target and task is None:  # nobody says what it leads to: no task's own text then
            attack = replace(attack, target="")

    data, calm = options["data"], []
    with reading(options["column"], skip=options["skip_bad_rows"]) as rows_of:
        if not data or _is_built(Path(data)):  # sets, whose rows are known to be triggered or clean
            sets = read_sets(Path(data), only=HELD_OUT) if data else source.sets()
            rows, calm = (kept(sets[name], limit=limit, seed=seed, what=name) for name in HELD_OUT)
        else:
            stream = rows_of(data, options["format"] or None)
            rows = kept(stream, limit=limit, seed=seed, what=data)
        if clean := options["clean"]:
            calm = kept(rows_of(clean, None), limit=limit, seed=seed, what=clean)
    sets = test_sets(
        rows, calm, attack, target=options["target"], task=task,
        completions=options["completions"] or "auto",
    )  # fmt: skip
    return attack, sets


def _is_built(folder: Path) -> bool:
    """Whether a folder holds the sets of ``loratomy data build``, and is no data set of others."""
    return folder.is_dir() and any((folder / f"{name}.jsonl").exists() for name in HELD_OUT)


def _check_targets(sets: "TestSets", study: Study) -> None:
    from ..evaluation.collect import check_targets

    check_targets(sets.triggered, study.success)


def _rendered(
    source: "OfRun | OfAdapter", study: dict[str, Any], sets: "TestSets", asked: Wanted
) -> "tuple[Subject, RenderingChoice]":
    """The base with the rendering of the evaluation; every adapter has passed the gate.

    An evaluation of a run renders as the run does, unless another rendering is meant.
    """
    from ..core.adapter.factors import read_adapter

    subject = loaded_base(*(study[key] for key in ("base", "device", "dtype")))
    adapters = {
        name: read_adapter(
            path, subject.shapes, ignore_modules=source.ignored(), base=subject.parameter
        )
        for name, path in source.sources().items()
    }
    first = next(iter(adapters))
    if isinstance(source, OfAdapter):
        folder = source.sources()[first]
        for sentence in (
            other_base(folder, study["base"]),
            of_size(subject, adapters[first], "evaluated"),
        ):
            if sentence:
                say(sentence)
    subject, choice = settled(
        subject,
        adapters[first],
        source.sources()[first],
        asked,
        triggered=sets.triggered,
        clean=[row for row in sets.clean if row.completion],
        run=source.rendering,
    )
    tell(choice)
    return subject, choice


def _write(study: Study, sets: "TestSets", choice: RenderingChoice, work: Path) -> None:
    """The sets; clean prompts without answer get the base's own."""
    from ..core.records.io import save_record
    from ..unlearning.trained.distill import own_answers

    save_record(choice, work, RENDERING_RECORD)
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
