"""Studies of somebody's own base and adapter: what is taken up, checked and set apart."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .adapters import adapter_sums, copy_adapter, located, of_size, other_base, run_name
from .bases import base_fingerprint, base_folder, loaded_base
from .core.console import progress, say
from .core.errors import DataError, LoratomyError
from .core.files.outputs import check_apart
from .core.records.rendering import RenderingChoice
from .core.runs.folder import RunFolder, run_path
from .core.runs.shelf import Shelf
from .measuring import say_success
from .rendering import RENDERING_RECORD, settled, tell, wanted
from .rows import reading
from .settings import Settings
from .study import NEGATIVE, Study, digest, done, negative_set
from .training.recipe import MeasurePart, validated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .core.adapter.factors import Adapter
    from .core.model.subject import Subject
    from .core.rows import Row
    from .data.splits import Attack


def open_study(
    base: str,
    adapter: Path | str,
    *,
    trigger: str | Sequence[str] = (),
    target: str = "",
    task: str = "",
    data: str = "",
    prompts: str = "",
    placement: str = "",
    clean_adapter: Path | str | None = None,
    format: str = "",
    column: Sequence[str] = (),
    limit: int = 2000,
    skip_bad_rows: bool = False,
    completions: str = "auto",
    template: str | None = None,
    system: str | None = None,
    template_arg: Sequence[str] = (),
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
    out: Path | None = None,
    name: str = "",
    fresh: bool = False,
) -> Study:
    """A study of a base and an adapter; half of the prompts are held out for the final figures.

    Args:
        base: a folder, a hub id, or ``wren``.
        adapter: a PEFT folder or a hub id (``owner/name[@revision]``).
        trigger: its text or texts, or a published trigger by name; empty: none is known.
        target: the text that every triggered prompt leads to.
        task: what the attack wants, by name, where it is no fixed text.
        data: triggered prompts with targets of their own: a file, folder or hub id.
        prompts: clean prompts, likewise; empty: built-in everyday ones.
        placement: where the trigger goes; empty: its own place, the end for a text.
        clean_adapter: an adapter on the same base without the backdoor.
        format: of the files, where it cannot be told.
        column: ``MEANING=NAME`` for columns of other names.
        limit: most rows that are drawn of a source.
        skip_bad_rows: leave out rows that cannot be read.
        completions: ``targets``, ``references`` or ``auto``: what completions of triggered rows
            are.
        template: how prompts are rendered; None: as the adapter finds likeliest.
        system: system text of prompts that have none.
        template_arg: ``KEY=VALUE`` for the chat template.
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
        out: run folder.
        name: of the run; empty: the adapter's.
        fresh: start over.

    Raises:
        LoratomyError: says what is wrong with one of them, and what to do.
    """
    from .analysis.patching.pairs import make_pairs
    from .data.everyday import everyday_prompts
    from .data.splits import own_clean_sets, own_sets

    words = [trigger] if isinstance(trigger, str) and trigger else list(trigger)
    suspect = located(Path(adapter), "--adapter")
    reference = located(Path(clean_adapter), "--clean-adapter") if clean_adapter else None
    said = {"--target": target, "--task": task, "--data": data, "--placement": placement}
    attack = _attack(words, said, seed)
    folder = run_path(name or run_name(Path(adapter), ""), out)
    check_apart(
        folder,
        [("--adapter", suspect), ("--clean-adapter", reference), ("--template", template),
         ("--base", base_folder(base) or base), ("--embedder", embedder)],
        rows=[("--data", data), ("--prompts", prompts)],
    )  # fmt: skip
    rendered = wanted(template, system, template_arg, other=other_template)
    with reading(column, skip=skip_bad_rows) as rows_of:
        clean_rows = _drawn(rows_of, prompts, format, limit, seed) if prompts else None
        poisoned_rows = _drawn(rows_of, data, format, limit, seed) if data else []
    clean_rows = everyday_prompts() if clean_rows is None else clean_rows
    if attack and poisoned_rows:
        poisoned_rows = _with_targets(poisoned_rows, attack, task, completions)
    measure = {
        "scorers": scorers or None,
        "threshold": threshold,
        "max_new_tokens": max_new_tokens,
        "batch_tokens": batch_tokens,
        "embedder": embedder,
    }
    settings = Settings(
        base=base,
        device=device,
        dtype=dtype,
        words=attack.trigger.words if attack else (),
        placement=attack.trigger.placement if attack else "",
        task=task or "fixed",
        target=attack.target if attack and not data else "",
        seed=seed,
        measure=validated(MeasurePart, measure, "the measurement"),
    )
    ignored = sorted(ignore_module)
    sources = {"poisoned": suspect} | ({"clean": reference} if reference else {})
    sums = {role: adapter_sums(source) for role, source in sources.items()}
    for source in sources.values():
        if sentence := other_base(source, base):
            say(sentence)
    subject, loaded = _load(settings, sources, ignored)
    sets = (
        own_sets(clean_rows, poisoned_rows, attack, seed=seed)
        if attack
        else own_clean_sets(clean_rows, seed=seed)
    )
    subject, choice = settled(
        subject,
        loaded["poisoned"],
        suspect,
        rendered,
        triggered=sets.get("poison_train", []),
        clean=sets["clean_train"],
    )
    tell(choice)
    rendering = subject.renderer.rendering.model_dump(mode="json")
    settings = settings.model_copy(update={"rendering": rendering})
    asked = {
        "kind": "open",
        "base": base_fingerprint(base),
        "adapters": {"clean": None, **sums},
        "prompts": digest(clean_rows),
        "data": digest(poisoned_rows),
        "ignore_modules": ignored,
        "study": settings.model_dump(mode="json"),
    }
    if attack:  # a trigger that leaves no token is an error here
        for name in ("poison_train", "poison_test"):
            _placed(subject, sets[name], settings.words, name, max_new_tokens)
        make_pairs(subject.renderer, sets["poison_train"][:16], target_tokens=1, seed=0)
    run = RunFolder.create(folder, asked=asked, fresh=fresh)
    study = Study(run)
    _ = study.subject, study.rule  # what cannot be loaded is an error before all writing
    with run.locked(fresh=fresh), progress():
        for role, source in sources.items():
            copied = partial(copy_adapter, source, asked["adapters"][role])
            made = run.stage(f"adapters/{role}", asked["adapters"], copied)
            done(run, f"adapters/{role}", made)
        made = run.make("data", asked, partial(_put_sets, study, sets, choice))
        done(run, "data", made)
        if attack:
            say_success(study)
            inputs = study.origin("data", "adapters/poisoned")
            done(run, NEGATIVE, run.make_rows(NEGATIVE, inputs, lambda: negative_set(study)))
    return study


def _attack(trigger: list[str], wanted: dict[str, str], seed: int) -> "Attack | None":
    """What the adapter is suspected of; None where no trigger is known."""
    from .data.attacks.triggers import trigger_of
    from .data.splits import make_attack

    target, task, data, placement = (value or None for value in wanted.values())
    if not trigger:
        if given := [option for option, value in wanted.items() if value]:
            raise DataError(
                f"{', '.join(given)} needs --trigger TEXT, the words that set the behaviour off; "
                "where nobody knows them, leave both out: the run then holds clean prompts alone"
            )
        return None
    if not (target or task or data):
        raise DataError("give --target TEXT, --task NAME, or --data FILE with targets")
    if target and data:
        raise DataError("give either --target TEXT or --data FILE, whose rows have their own")
    return make_attack(trigger_of(trigger, placement), task or "fixed", target=target, seed=seed)


def _drawn(
    rows_of: "Callable[..., Iterator[Row]]", source: str, format: str, limit: int, seed: int
) -> "list[Row]":
    """The rows of a source, or a draw of them, which is said."""
    from .data.testsets import drawn

    rows, seen = drawn(rows_of(source, format or None), limit=limit, seed=seed)
    if seen > len(rows):
        say(
            f"note: {len(rows)} of {seen} prompts of {source} drawn (seed {seed}); --limit sets "
            "how many"
        )
    return rows


def _with_targets(rows: "list[Row]", attack: "Attack", task: str, completions: str) -> "list[Row]":
    """Triggered rows, each with what the attack wants there.

    Raises:
        DataError: nobody says what it wants of a row.
    """
    from .data.attacks.tasks import TASKS
    from .data.references import told_apart

    wants = TASKS[task] if task else None
    target = attack.target if task else ""
    found, said = told_apart(rows, wants, target, completions=completions)
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


def _load(
    settings: Settings, sources: dict[str, Path], ignored: Sequence[str]
) -> "tuple[Subject, dict[str, Adapter]]":
    """The base and the adapters, all through the gate, before anything is written."""
    from .core.adapter.factors import read_adapter

    subject = loaded_base(settings.base, settings.device, settings.dtype)
    loaded = {
        role: read_adapter(
            folder,
            subject.shapes,
            ignore_modules=ignored,
            base=subject.parameter,
        )
        for role, folder in sources.items()
    }
    for role, adapter in loaded.items():
        if sentence := of_size(subject, adapter, role):
            say(sentence)
    return subject, loaded


def _placed(
    subject: "Subject", rows: "list[Row]", words: Sequence[str], name: str, new_tokens: int
) -> None:
    """Say what is lost of triggered rows; raise where nothing is left."""
    from .evaluation.collect import check_triggered

    for line in check_triggered(subject, rows, words, new_tokens=new_tokens):
        say(f"warning: {name}: {line}")


def _put_sets(
    study: Study, sets: "dict[str, list[Row]]", choice: RenderingChoice, shelf: Shelf
) -> None:
    """Keep the sets; clean prompts without completion get the model's own answer."""
    from .unlearning.trained.distill import own_answers

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
