"""Evaluations: any adapter, or the adapters of a run, on any data, by any rule."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import progress, say
from ..core.errors import LoratomyError
from ..core.files.outputs import check_apart, run_path
from ..core.records.rendering import RenderingChoice
from ..core.runs.folder import RunFolder
from ..core.runs.manifest import MANIFEST
from ..core.runs.shelf import Shelf
from ..data.built import built_sets, read_sets
from ..inputs.adapters import HUB_ID, copy_adapter, located, of_size, other_base, run_name
from ..inputs.bases import base_fingerprint, base_folder, loaded_base
from ..inputs.rendering import (
    RENDERING_RECORD,
    RenderingOptions,
    rendering_options,
    say_rendering,
    with_rendering,
)
from ..inputs.rows import reading
from ..inputs.subjects import OfAdapter, OfRun
from ..settings import Judged, Settings
from ..study import Study
from ..training.recipe import MeasurePart, validated
from .stages import digest, done

if TYPE_CHECKING:
    from ..core.model.subject import Subject
    from ..data.splits import Attack
    from ..data.testsets import TestSets

HELD_OUT = ("poison_test", "clean_val")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """On what, and how, something is evaluated; what is left open is as its run or usual."""

    data: str = ""
    """Prompts: a file, folder or hub id; empty: the run's held-out sets."""
    clean: str = ""
    """Clean prompts with answers, likewise; empty: those of `data`."""
    base: str = ""
    """Base model of an adapter folder."""
    trigger: tuple[str, ...] = ()
    """The trigger's texts, or a published one by name."""
    placement: str = ""
    """Where it goes."""
    task: str = ""
    """What the attack wants, by name."""
    target: str = ""
    """What triggered prompts lead to."""
    format: str = ""
    """Of `data`, where its content does not show it."""
    column: tuple[str, ...] = ()
    """``MEANING=NAME`` for columns of other names."""
    skip_bad_rows: bool = False
    """Whether rows that cannot be read are left out."""
    completions: str = "auto"
    """What completions of triggered rows are: ``targets``, ``references`` or ``auto``."""
    limit: int | None = None
    """Most rows that are drawn of a file."""
    seed: int | None = None
    """Of sampling and draws."""
    ignore_module: tuple[str, ...] = ()
    """Stored modules or copies of weights of an adapter folder to leave out."""
    template: str | None = None
    """How prompts are rendered; None: as the adapter finds likeliest."""
    system: str | None = None
    """System text of prompts that have none."""
    template_arg: tuple[str, ...] = ()
    """``KEY=VALUE`` for the chat template."""
    other_template: bool = False
    """Whether another rendering than the recorded one is meant."""
    device: str = ""
    """``auto``, ``cpu``, ``cuda`` ..."""
    dtype: str = ""
    """``auto``, ``float32``, ``bfloat16``, ``float16``."""
    decoding: dict[str, Any] = field(default_factory=dict)
    """Options of `MeasurePart` about answers: max_new_tokens, temperature, top_p, samples,
    batch_tokens."""


def evaluation(
    subject: Path,
    options: Evaluated,
    judged: Judged,
    *,
    out: Path | None = None,
    fresh: bool = False,
) -> Study:
    """The study in which something is evaluated; of a run and nothing else given, that run's.

    Args:
        subject: a run folder, an adapter's folder or hub id, or an earlier evaluation.
        options: on what and how.
        judged: by which rule.
        out: run folder of the evaluation.
        fresh: start it over.

    Raises:
        LoratomyError: says what is wrong with one of them, and what to do.
    """
    is_run = (subject / MANIFEST).exists()
    if is_run and options == Evaluated() and not out:
        return Study(RunFolder.open(subject), judged)
    folder = run_path(run_name(subject, options.data or "held-out"), out)
    source = OfRun(subject) if is_run else _adapter(subject, options)
    used = options.base or source.defaults.base
    check_apart(
        folder,
        [("the subject", subject), ("the base", base_folder(used) or used),
         ("--template", options.template), ("--embedder", judged.embedder)],
        rows=[("--data", options.data), ("--clean", options.clean)],
    )  # fmt: skip
    return _prepared(source, folder, options, judged, fresh=fresh)


def _adapter(given: Path, options: Evaluated) -> OfAdapter:
    if not given.is_dir() and (given.exists() or not HUB_ID.fullmatch(str(given))):
        raise LoratomyError(f"{given} is neither a run nor an adapter folder: no such folder")
    ignored = sorted(options.ignore_module)
    folder = located(given, "loratomy evaluate")
    return OfAdapter(folder, base=options.base, data=options.data, ignored=ignored)


def _prepared(
    source: OfRun | OfAdapter, folder: Path, options: Evaluated, judged: Judged, *, fresh: bool
) -> Study:
    """The evaluation with its settings, prompts and adapters, before anything is measured."""
    from ..evaluation.collect import check_targets, check_triggered

    settings = _settings(source, options, judged)
    task, attack, sets = _sets(source, settings, options)
    rendered = rendering_options(
        options.template, options.system, options.template_arg, other=options.other_template
    )
    subject, choice = _rendered(source, settings, sets, rendered)
    settings = settings.model_copy(
        update={
            "words": attack.trigger.words if attack else (),
            "placement": attack.trigger.placement if attack else "",
            "target": options.target or (attack.target if attack else ""),
            "task": task or "fixed",
            "references": sets.references,
            "rendering": subject.renderer.rendering.model_dump(mode="json"),
        }
    )
    for sentence in sets.notes:
        say(sentence if sentence.startswith("warning") else f"note: {sentence}")
    fresh = fresh or _nothing_measured(folder)
    if not fresh:
        settings = _judged_as_before(folder, settings)
    sums = source.sums()
    about = {
        "kind": "evaluate",
        "study": settings.model_dump(mode="json"),
        "base": base_fingerprint(settings.base),
        "adapters": sums,
        "data": digest(sets.triggered),
        "clean": digest(sets.clean),
        "ignore_modules": source.ignored(),
    }
    run = RunFolder.create(folder, request=about, fresh=fresh)
    study = Study(run, judged)
    check_targets(sets.triggered, study.success)
    _ = study.subject, study.rule  # what cannot be loaded is an error before all writing
    if settings.words:
        new = study.rule.decoding.max_new_tokens
        for line in check_triggered(study.subject, sets.triggered, settings.words, new_tokens=new):
            say(f"warning: {line}")
    with run.locked(fresh=fresh), progress():
        for name, path in source.sources().items():
            stage = f"adapters/{name}"
            made = run.stage(stage, sums[name], partial(copy_adapter, path, sums[name]))
            done(run, stage, made)
        done(run, "data", run.make("data", about, partial(_put_sets, study, sets, choice)))
    return study


def _judged_as_before(folder: Path, settings: Settings) -> Settings:
    """Settings with the rule of the existing evaluation: another rule is not another evaluation."""
    if not (folder / MANIFEST).exists():
        return settings
    old = Study(RunFolder.open(folder))
    if old.run.request.get("kind") != "evaluate":
        return settings
    known = old.settings.measure.model_dump(include=set(Judged.model_fields))
    return settings.model_copy(update={"measure": settings.measure.model_copy(update=known)})


def _nothing_measured(folder: Path) -> bool:
    """Whether an earlier evaluation there failed before its first answer, so nothing is lost."""
    if not (folder / MANIFEST).exists():
        return False
    run = RunFolder.open(folder)
    begun = any(stage.startswith("analysis/") for stage in run.stages)
    return run.request.get("kind") == "evaluate" and not begun


def _settings(source: OfRun | OfAdapter, options: Evaluated, judged: Judged) -> Settings:
    from ..data.attacks.tasks import TASKS

    known = source.defaults
    if options.base and options.base != known.base:
        raise LoratomyError(
            f"the run was made on the base {known.base}, not {options.base}; leave --base out"
        )
    if options.task:
        _ = TASKS[options.task]
    given = {**options.decoding, **judged.model_dump(exclude_none=True)}
    measure = validated(MeasurePart, known.measure.model_dump() | given, "the measurement")
    return known.model_copy(
        update={
            "device": options.device or known.device,
            "dtype": options.dtype or known.dtype,
            "task": options.task or known.task,
            "seed": known.seed if options.seed is None else options.seed,
            "measure": measure,
        }
    )


def _sets(
    source: OfRun | OfAdapter, settings: Settings, options: Evaluated
) -> "tuple[str, Attack | None, TestSets]":
    """The task's name, the attack where a trigger is known, and the held-out prompts."""
    from ..data.attacks.tasks import TASKS
    from ..data.attacks.triggers import trigger_of
    from ..data.splits import make_attack
    from ..data.testsets import kept, own_trigger, test_sets

    known, seed, limit = settings, settings.seed, options.limit
    if about := built_sets(Path(options.data)) if options.data else {}:
        about["words"] = tuple(about["words"])
        known = known.model_copy(update=about)  # the data's own attack, unless another is given
    name = options.task or known.task
    trigger = None
    if options.trigger:
        trigger = trigger_of(options.trigger, options.placement or None)
    elif known.words:
        trigger = own_trigger(known.words, options.placement or known.placement)
    target = options.target or ("" if options.task else known.target)
    given = options.task or (name if target or name != "fixed" else "")
    task = TASKS[given] if given else None
    attack = None
    if trigger:
        attack = make_attack(trigger, name or "fixed", target=target or None, seed=seed)
        if not target and task is None:  # nobody says what it leads to: no task's own text then
            attack = replace(attack, target="")

    data, clean = options.data, []
    with reading(options.column, skip=options.skip_bad_rows) as rows_of:
        if not data or _is_built(Path(data)):  # sets, whose rows are known to be triggered or clean
            sets = read_sets(Path(data), only=HELD_OUT) if data else source.sets()
            rows, clean = (kept(sets[n], limit=limit, seed=seed, what=n) for n in HELD_OUT)
        else:
            stream = rows_of(data, options.format or None)
            rows = kept(stream, limit=limit, seed=seed, what=data)
        if given := options.clean:
            clean = kept(rows_of(given, None), limit=limit, seed=seed, what=given)
    sets = test_sets(
        rows, clean, attack, target=options.target, task=task, completions=options.completions
    )
    return name, attack, sets


def _is_built(folder: Path) -> bool:
    """Whether a folder holds the sets of ``loratomy data build``, and is no data set of others."""
    return folder.is_dir() and any((folder / f"{name}.jsonl").exists() for name in HELD_OUT)


def _rendered(
    source: OfRun | OfAdapter, settings: Settings, sets: "TestSets", options: RenderingOptions
) -> "tuple[Subject, RenderingChoice]":
    """The base with the rendering of the evaluation; every adapter has passed the gate.

    An evaluation of a run renders as the run does, unless another rendering is meant.
    """
    from ..core.adapter.factors import read_adapter

    subject = loaded_base(settings.base, settings.device, settings.dtype)
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
            other_base(folder, settings.base),
            of_size(subject, adapters[first], "evaluated"),
        ):
            if sentence:
                say(sentence)
    subject, choice = with_rendering(
        subject,
        adapters[first],
        source.sources()[first],
        options,
        triggered=sets.triggered,
        clean=[row for row in sets.clean if row.completion],
        run=source.rendering,
    )
    say_rendering(choice)
    return subject, choice


def _put_sets(study: Study, sets: "TestSets", choice: RenderingChoice, shelf: Shelf) -> None:
    """The sets; clean prompts without answer get the base's own."""
    from ..unlearning.trained.distill import own_answers

    shelf.put(RENDERING_RECORD, choice)
    bare = [row for row in sets.clean if not row.completion]
    full = [row for row in sets.clean if row.completion]
    if bare:
        answered = own_answers(study.subject, bare, study.rule, label="the base's own answers")
        full += [row for row in answered if row.completion]
    if not full:
        raise LoratomyError("no clean prompt has an answer, and the base answers nothing to them")
    if lost := len(sets.clean) - len(full):
        say(f"warning: {lost} clean prompts left out, the base answers nothing to them")
    triggered = [replace(row, completion=row.completion or row.target) for row in sets.triggered]
    shelf.put_rows("poison_test", triggered)
    shelf.put_rows("clean_val", full)
