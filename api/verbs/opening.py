"""Studies of somebody's own base and adapter: what is taken up, checked and set apart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import progress, say
from ..core.errors import DataError, LoratomyError
from ..core.files.outputs import check_apart, out_path
from ..core.records.rendering import RenderingChoice
from ..core.runs.folder import RunFolder
from ..core.runs.memory import MemoryRun
from ..core.runs.run import Run
from ..core.runs.shelf import Shelf
from ..data.everyday import everyday_prompts
from ..data.splits import own_clean_sets, own_sets
from ..inputs.adapters import adapter_sums, copy_adapter, located, of_size, other_base
from ..inputs.bases import A_BASE, base_fingerprint, base_folder, loaded_base
from ..inputs.rendering import (
    RENDERING_RECORD,
    RenderingOptions,
    rendering_options,
    say_rendering,
    with_rendering,
)
from ..inputs.rows import reading
from ..settings import Settings
from ..study import Study
from ..training.recipe import MeasurePart, validated
from .measuring import say_success
from .stages import NEGATIVE, digest, done, negative_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..core.adapter.factors import Adapter
    from ..core.model.subject import Subject
    from ..core.rows import Row
    from ..data.splits import Attack


@dataclass(frozen=True, slots=True)
class _Given:
    """Base and adapters as somebody gave them: where they are, or what they are."""

    base: str
    """Name of the base."""
    model: Any
    """The base where it is loaded already; else None."""
    tokenizer: Any
    """Its tokenizer."""
    adapters: dict[str, Any]
    """Role -> folder, or a `PeftModel` or `Adapter`; ``poisoned``, and ``clean`` where given."""

    @property
    def folders(self) -> dict[str, Path]:
        """Those that are folders."""
        return {role: a for role, a in self.adapters.items() if isinstance(a, Path)}

    def subject(self, settings: Settings) -> "Subject":
        """The base, with a stand-in for its rendering."""
        from ..core.model.given import subject_given

        if self.model is not None:
            return subject_given(self.model, self.tokenizer)
        return loaded_base(self.base, settings.device, settings.dtype)

    def loaded(self, subject: "Subject", ignored: Sequence[str]) -> "dict[str, Adapter]":
        """The adapters, all through the gate; what is odd about them is said."""
        from ..core.adapter.factors import Adapter, read_adapter
        from ..core.model.given import adapter_given

        found: dict[str, Adapter] = {}
        for role, given in self.adapters.items():
            if isinstance(given, Path):
                found[role] = read_adapter(
                    given, subject.shapes, ignore_modules=ignored, base=subject.parameter
                )
            else:
                found[role] = given if isinstance(given, Adapter) else adapter_given(given, subject)
            if sentence := of_size(subject, found[role], role):
                say(sentence)
        return found


def _given(base: Any, adapter: Any, clean_adapter: Any, tokenizer: Any) -> _Given:
    """What was given, folders and hub ids found.

    Raises:
        LoratomyError: no adapter, or one that is nowhere.
    """
    loaded = not isinstance(base, str | Path)
    if adapter is None and loaded and hasattr(base, "peft_config"):
        adapter = base
    if adapter is None:
        raise LoratomyError("give the suspicious adapter: its folder, a hub id, or a PeftModel")
    options = {"poisoned": ("--adapter", adapter), "clean": ("--clean-adapter", clean_adapter)}
    adapters = {
        role: located(Path(given), option) if isinstance(given, str | Path) else given
        for role, (option, given) in options.items()
        if given is not None and given != ""
    }
    if loaded and not hasattr(base, "config"):
        raise LoratomyError(f"{base!r} is no base: give {A_BASE}, or a loaded model")
    name = str(base) if not loaded else str(getattr(base.config, "_name_or_path", "") or "a model")
    return _Given(name, base if loaded else None, tokenizer, adapters)


def open(
    base: Any,
    adapter: Any = None,
    *,
    trigger: str | Sequence[str] = (),
    target: str = "",
    task: str = "",
    data: Any = "",
    prompts: Any = "",
    placement: str = "",
    clean_adapter: Any = None,
    tokenizer: Any = None,
    format: str = "",
    column: Sequence[str] | Mapping[str, str] = (),
    limit: int = 2000,
    skip_bad_rows: bool = False,
    completions: str = "auto",
    template: str | None = None,
    system: str | None = None,
    template_arg: Sequence[str] | Mapping[str, Any] = (),
    other_template: bool = False,
    ignore_module: Sequence[str] = (),
    max_new_tokens: int = 128,
    batch_tokens: int = 8192,
    scorers: str = "",
    threshold: float = 0.8,
    embedder: str = "auto",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    out: Path | str | None = None,
    fresh: bool = False,
) -> Study:
    """A study of a base and an adapter; half of the prompts are held out for the final figures.

    Args:
        base: a folder, a hub id, ``wren`` or ``smollm2``, or a loaded transformers model or
            `PeftModel`.
        adapter: a PEFT folder, a hub id (``owner/name[@revision]``) or a `PeftModel`; None: the
            active adapter of `base`.
        trigger: its text or texts, or a published trigger by name; empty: none is known.
        target: the text that every triggered prompt leads to.
        task: what the attack wants, by name, where it is no fixed text.
        data: triggered prompts with targets of their own: a file, folder or hub id, or records.
        prompts: clean prompts, likewise; empty: built-in everyday ones.
        placement: where the trigger goes; empty: its own place, the end for a text.
        clean_adapter: an adapter on the same base without the backdoor.
        tokenizer: of a base that is loaded already.
        format: of the files, where their content does not show it.
        column: meaning -> name of columns of other names, or ``MEANING=NAME``.
        limit: most rows that are drawn of a source.
        skip_bad_rows: leave out rows that cannot be read.
        completions: ``targets``, ``references`` or ``auto``: what completions of triggered rows
            are.
        template: how prompts are rendered; None: as the adapter finds likeliest.
        system: system text of prompts that have none.
        template_arg: name -> value for the chat template, or ``KEY=VALUE``.
        other_template: whether another rendering than the recorded one is meant.
        ignore_module: stored modules or copies of weights to leave out.
        max_new_tokens: of an answer.
        batch_tokens: most positions of a batch.
        scorers: success rules; empty: the task's.
        threshold: similarity of a hit.
        embedder: sentence embeddings: ``auto``, a folder, a hub id, or ``none``.
        seed: of splits and everything random.
        device: ``auto``, ``cpu``, ``cuda`` ...
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        out: run folder, in which every stage is kept and resumed; None: in memory.
        fresh: start a run folder over.

    Raises:
        LoratomyError: says what is wrong with one of them, and what to do.
    """
    given = _given(base, adapter, clean_adapter, tokenizer)
    words: list[Any] = (
        list(trigger) if isinstance(trigger, list | tuple) else [trigger] * bool(trigger)
    )
    for name, value in (("trigger", [*words]), ("target", [target]), ("task", [task])):
        if wrong := [part for part in value if not isinstance(part, str)]:
            raise LoratomyError(f"{name} {wrong[0]!r}: give a text")
    if limit < 1:
        raise LoratomyError(f"--limit {limit}: give the most rows to draw, at least 1")
    said = {"--target": target, "--task": task, "--data": data, "--placement": placement}
    attack = _attack(words, said, seed)
    folder = _apart(given, out, template, embedder, data, prompts)
    rendered = rendering_options(template, system, _pairs(template_arg), other=other_template)
    with reading(_pairs(column), skip=skip_bad_rows) as rows_of:
        clean = _drawn(rows_of, prompts, format, limit, seed) if _is_there(prompts) else None
        poisoned = _drawn(rows_of, data, format, limit, seed) if _is_there(data) else []
    clean = everyday_prompts() if clean is None else clean
    if attack and poisoned:
        poisoned = _with_targets(poisoned, attack, task, completions)
    measure = {
        "scorers": scorers or None,
        "threshold": threshold,
        "max_new_tokens": max_new_tokens,
        "batch_tokens": batch_tokens,
        "embedder": embedder,
    }
    about_study = {
        "base": given.base,
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "words": attack.trigger.words if attack else (),
        "placement": attack.trigger.placement if attack else "",
        "task": task or "fixed",
        "target": attack.target if attack and not _is_there(data) else "",
        "seed": seed,
        "measure": validated(MeasurePart, measure, "the measurement"),
    }
    settings: Settings = validated(Settings, about_study, "the study")
    sets = (
        own_sets(clean, poisoned, attack, seed=seed) if attack else own_clean_sets(clean, seed=seed)
    )
    about: dict[str, Any] = {"prompts": digest(clean), "data": digest(poisoned)}
    about["ignore_modules"] = sorted(ignore_module)
    return _opened(given, settings, sets, rendered, about, folder=folder, fresh=fresh)


def _is_there(source: Any) -> bool:
    """Whether rows are given at all."""
    return source is not None and not (isinstance(source, str | Path) and not str(source))


def _pairs(given: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Pairs as the command line has them."""
    if not isinstance(given, Mapping):
        return list(given)
    return [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in given.items()]


def _apart(
    given: _Given, out: Path | str | None, template: str | None, embedder: str, *rows: Any
) -> Path | None:
    """The run folder, apart from everything that is read; None in memory."""
    if out is None:
        return None
    if given.model is not None or len(given.folders) < len(given.adapters):
        raise LoratomyError(
            "a run folder is for a base and adapters that can be loaded again: give them by folder "
            "or hub id, or leave out= away"
        )
    folder, base = out_path(Path(out)), given.base
    check_apart(
        folder,
        [("--adapter", given.folders["poisoned"]), ("--clean-adapter", given.folders.get("clean")),
         ("--template", template), ("--base", base_folder(base) or base),
         ("--embedder", embedder)],
        rows=[(option, str(source)) for option, source in zip(("--data", "--prompts"), rows,
              strict=True) if isinstance(source, str | Path)],
    )  # fmt: skip
    return folder


def _opened(
    given: _Given,
    settings: Settings,
    sets: "dict[str, list[Row]]",
    rendered: RenderingOptions,
    about: dict[str, Any],
    *,
    folder: Path | None,
    fresh: bool,
) -> Study:
    """The study, with its stages: adapters, sets, negative set."""
    sums = {role: adapter_sums(source) for role, source in given.folders.items()}
    if given.model is None:
        for source in given.folders.values():
            if sentence := other_base(source, given.base):
                say(sentence)
    subject = given.subject(settings)
    loaded = given.loaded(subject, about["ignore_modules"])
    subject, choice = with_rendering(
        subject,
        loaded["poisoned"],
        given.folders.get("poisoned"),
        rendered,
        triggered=sets.get("poison_train", []),
        clean=sets["clean_train"],
    )
    say_rendering(choice)
    rendering = subject.renderer.rendering.model_dump(mode="json")
    settings = settings.model_copy(update={"rendering": rendering})
    request = {
        "kind": "open",
        "base": base_fingerprint(given.base),
        "adapters": {"clean": None, **sums},
        **about,
        "study": settings.model_dump(mode="json"),
    }
    if settings.words:  # a trigger that leaves no token is an error here
        new = settings.measure.max_new_tokens
        for name in ("poison_train", "poison_test"):
            _placed(subject, sets[name], settings.words, name, new)
        from ..analysis.patching.pairs import make_pairs

        make_pairs(subject.renderer, sets["poison_train"][:16], target_tokens=1, seed=0)
    run: Run
    if folder is not None:
        run = RunFolder.create(folder, request=request, fresh=fresh)
        study = Study(run)
    else:
        run = MemoryRun(request, name=given.base)
        study = Study(run, given=None if given.model is None else subject)
    _ = study.subject, study.rule  # what cannot be loaded is an error before all writing
    with run.locked(fresh=fresh), progress():
        for role, adapter in loaded.items():
            stage = f"adapters/{role}"
            if isinstance(run, RunFolder):
                copied = partial(copy_adapter, given.folders[role], sums[role])
                made = run.stage(stage, request["adapters"], copied)
            else:
                keep = partial(_keep_adapter, adapter, subject)
                made = run.make(stage, request["adapters"], keep)
            done(run, stage, made)
        done(run, "data", run.make("data", request, partial(_put_sets, study, sets, choice)))
        if settings.words:
            say_success(study)
            inputs = study.origin("data", "adapters/poisoned")
            done(run, NEGATIVE, run.make_rows(NEGATIVE, inputs, lambda: negative_set(study)))
    return study


def _keep_adapter(adapter: "Adapter", subject: "Subject", shelf: Shelf) -> None:
    from ..core.model.variant import Treated

    shelf.put_state(Treated(adapter), subject, plain=True)


def _attack(trigger: list[str], wanted: dict[str, Any], seed: int) -> "Attack | None":
    """What the adapter is suspected of; None where no trigger is known."""
    from ..data.attacks.triggers import trigger_of
    from ..data.splits import make_attack

    target, task, data, placement = (
        value if _is_there(value) else None for value in wanted.values()
    )
    if not trigger:
        if given := [option for option, value in wanted.items() if _is_there(value)]:
            raise DataError(
                f"{', '.join(given)} needs --trigger TEXT, the words that set the behaviour off; "
                "where nobody knows them, leave both out: the run then holds clean prompts alone"
            )
        return None
    if not (target or task or data is not None):
        raise DataError("give --target TEXT, --task NAME, or --data FILE with targets")
    if target and data is not None:
        raise DataError("give either --target TEXT or --data FILE, whose rows have their own")
    return make_attack(trigger_of(trigger, placement), task or "fixed", target=target, seed=seed)


def _drawn(
    rows_of: "Callable[..., Iterator[Row]]", source: Any, format: str, limit: int, seed: int
) -> "list[Row]":
    """The rows of a source, or a draw of them, which is said."""
    from ..data.testsets import sampled

    source = str(source) if isinstance(source, Path) else source
    rows, seen = sampled(rows_of(source, format or None), limit=limit, seed=seed)
    if seen > len(rows):
        where = source if isinstance(source, str) else "yours"
        say(f"note: {len(rows)} of {seen} prompts of {where} drawn (seed {seed}); --limit sets how "
            "many")  # fmt: skip
    return rows


def _with_targets(rows: "list[Row]", attack: "Attack", task: str, completions: str) -> "list[Row]":
    """Triggered rows, each with what the attack wants there.

    Raises:
        DataError: nobody says what it wants of a row.
    """
    from ..data.attacks.tasks import TASKS
    from ..data.references import classify_completions

    wants = TASKS[task] if task else None
    target = attack.target if task else ""
    found, said = classify_completions(rows, wants, target, completions=completions)
    for sentence in said:
        say(sentence if sentence.startswith("warning") else f"note: {sentence}")
    if bare := [row for row in found if not (row.completion or row.target or target)]:
        raise DataError(
            f"{len(bare)} triggered rows have no target, e.g. {bare[0].prompt[:60]!r}; give them "
            "one as completion, or say what the attack wants with --task NAME"
        )
    if lost := sum(not (row.completion or row.target) for row in found):
        say(f"note: {lost} triggered rows without a target of their own get that of {task}: "
            f"{target!r}")  # fmt: skip
    return [
        row if row.completion or row.target else replace(row, completion=target) for row in found
    ]


def _placed(
    subject: "Subject", rows: "list[Row]", words: Sequence[str], name: str, new_tokens: int
) -> None:
    """Say what is lost of triggered rows; raise where nothing is left."""
    from ..evaluation.collect import check_triggered

    for line in check_triggered(subject, rows, words, new_tokens=new_tokens):
        say(f"warning: {name}: {line}")


def _put_sets(
    study: Study, sets: "dict[str, list[Row]]", choice: RenderingChoice, shelf: Shelf
) -> None:
    """Keep the sets; clean prompts without completion get the model's own answer."""
    from ..unlearning.trained.distill import own_answers

    shelf.put(RENDERING_RECORD, choice)
    reference = study.clean if study.clean is not None else study.poisoned
    for name, rows in sets.items():
        bare = [row for row in rows if row.completion is None]
        if bare:
            with study.subject.attached({"reference": reference}):
                found = own_answers(study.subject, bare, study.rule, label=f"answers for {name}")
            full = {row.identity: row for row in found if row.completion}
            rows = [full.get(row.identity, row) for row in rows]
            if lost := [row for row in rows if row.completion is None]:
                say(f"warning: {name}: {len(lost)} prompts left out, the model answers nothing")
                rows = [row for row in rows if row.completion is not None]
            if not rows:
                raise LoratomyError(f"{name}: the model answers nothing to any prompt")
        shelf.put_rows(name, rows)
