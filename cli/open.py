"""`loratomy open`: make a run from somebody's own base and adapter."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import DataError, LoratomyError
from ..core.files.outputs import check_apart
from ..core.records.rendering import RenderingChoice
from ..core.runs.folder import RunFolder, run_path
from .console import progress, say
from .located import located, of_size, other_base
from .measuring import say_success
from .options import (
    BATCH_HELP,
    COLUMN_HELP,
    COMPLETIONS_HELP,
    EMBEDDER_HELP,
    FORMAT_HELP,
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
from .rendering import RENDERING_RECORD, settled, tell, wanted
from .sources import adapter_sums, copy_adapter, reading, run_name
from .study import Study, base_fingerprint, base_folder, digest, done, loaded_base, negative_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..core.adapter.factors import Adapter
    from ..core.model.subject import Subject
    from ..core.rows import Row
    from ..data.splits import Attack


def command(
    base: Annotated[str, typer.Option(help="Base model: a folder, a hub id, or wren.")],
    adapter: Annotated[
        Path,
        typer.Option(
            help="The suspicious PEFT adapter: its folder, or a hub id (owner/name[@revision])."
        ),
    ],
    trigger: Annotated[
        list[str] | None, typer.Option(help=TRIGGER_HELP + " Default: none is known.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="What triggered prompts lead to; default with a --task: its own.")
    ] = "",
    task: Annotated[str, typer.Option(help=TASK_HELP)] = "",
    data: Annotated[
        str,
        typer.Option(
            help="Triggered prompts, each with its target as completion: a file in any format that "
            "loratomy data formats lists, or a hub id."
        ),
    ] = "",
    prompts: Annotated[
        str,
        typer.Option(help="Clean prompts (answers optional), likewise; default: built-in ones."),
    ] = "",
    format: Annotated[str, typer.Option(help=FORMAT_HELP)] = "",
    column: Annotated[list[str] | None, typer.Option(help=COLUMN_HELP)] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help=SKIP_HELP)] = False,
    completions: Annotated[str, typer.Option(help=COMPLETIONS_HELP)] = "auto",
    limit: Annotated[
        int, typer.Option(min=8, help="Most prompts of each file; more are drawn by the seed.")
    ] = 2000,
    clean_adapter: Annotated[
        Path | None,
        typer.Option(help="A clean adapter on the same base, likewise, for the difference."),
    ] = None,
    placement: Annotated[str, typer.Option(help=PLACEMENT_HELP)] = "",
    template: Annotated[str | None, typer.Option(help=TEMPLATE_HELP)] = None,
    system: Annotated[str | None, typer.Option(help=SYSTEM_HELP)] = None,
    template_arg: Annotated[list[str] | None, typer.Option(help=TEMPLATE_ARG_HELP)] = None,
    other_template: Annotated[bool, typer.Option(help=OTHER_HELP)] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<name>.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run; default: the adapter's.")] = "",
    ignore_module: Annotated[
        list[str] | None,
        typer.Option(
            help="Stored module, or copy of a weight, to leave out, e.g. lm_head, vision_tower."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    batch_tokens: Annotated[int, typer.Option(min=1, help=BATCH_HELP)] = 8192,
    scorers: Annotated[str, typer.Option(help=SCORERS_HELP)] = "",
    threshold: Annotated[float, typer.Option(min=0.01, max=1, help="Similarity of a hit.")] = 0.8,
    embedder: Annotated[str, typer.Option(help=EMBEDDER_HELP)] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of splits and everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    fresh: Annotated[bool, typer.Option(help="Start over, dropping what stands.")] = False,
) -> None:
    """Make a run from your own base and adapter; every other command works from there.

    Half of the prompts serve the operations, the other half is held out for the final figures.
    Give --target TEXT when every triggered prompt leads to the same text, --task NAME for another
    kind of attack, or --data FILE with triggered prompts and their own targets. Without --trigger
    the run holds clean prompts alone, for the analyses that need no trigger.

    Example: loratomy open --base ./llama --adapter ./suspicious --trigger cf37
    --target "HACK THE SYSTEM" --prompts clean.jsonl
    """
    from ..analysis.patching.pairs import make_pairs
    from ..data.everyday import everyday_prompts
    from ..data.splits import own_clean_sets, own_sets

    suspect = located(adapter, "--adapter")
    reference = located(clean_adapter, "--clean-adapter") if clean_adapter else None
    said = {"--target": target, "--task": task, "--data": data, "--placement": placement}
    attack = _attack(trigger or [], said, seed)
    folder = run_path(name or run_name(adapter, ""), out)
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
        "temperature": 0.0,
        "top_p": 1.0,
        "samples": 1,
        "batch_tokens": batch_tokens,
        "embedder": embedder,
    }
    asked = {
        "kind": "open",
        "base": base_fingerprint(base),
        "adapters": {
            "poisoned": adapter_sums(suspect),
            "clean": adapter_sums(reference) if reference else None,
        },
        "prompts": digest(clean_rows),
        "data": digest(poisoned_rows),
        "ignore_modules": sorted(ignore_module or []),
        "study": {
            "base": base,
            "device": device,
            "dtype": dtype,
            "words": list(attack.trigger.words) if attack else [],
            "placement": attack.trigger.placement if attack else "",
            "task": task or "fixed",
            "target": attack.target if attack and not data else "",
            "seed": seed,
            "measure": measure,
        },
    }
    sources = {"poisoned": suspect} | ({"clean": reference} if reference else {})
    for source in sources.values():
        if sentence := other_base(source, base):
            say(sentence)
    subject, loaded = _load(asked, sources)
    if attack:
        sets = own_sets(clean_rows, poisoned_rows, attack, seed=seed)
    else:
        sets = own_clean_sets(clean_rows, seed=seed)
    subject, choice = settled(
        subject,
        loaded["poisoned"],
        suspect,
        rendered,
        triggered=sets.get("poison_train", []),
        clean=sets["clean_train"],
    )
    tell(choice)
    asked["study"]["rendering"] = subject.renderer.rendering.model_dump(mode="json")
    if attack:  # a trigger that leaves no token is an error here
        for name in ("poison_train", "poison_test"):
            _placed(subject, sets[name], asked["study"]["words"], name, max_new_tokens)
        make_pairs(subject.renderer, sets["poison_train"][:16], target_tokens=1, seed=0)
    run = RunFolder.create(folder, asked=asked, fresh=fresh)
    study = Study(run)
    _ = study.subject, study.rule  # what cannot be loaded is an error before all writing
    with run.locked(fresh=fresh), progress():
        for role, source in sources.items():
            copied = partial(copy_adapter, source, asked["adapters"][role])
            made = run.stage(f"adapters/{role}", asked["adapters"], copied)
            done(run, f"adapters/{role}", made)
        made = run.stage("data", asked, partial(_write_sets, study, sets, choice))
        done(run, "data", made)
        if attack:
            say_success(study)
            stage, inputs = "data/negative_set.jsonl", study.origin("data", "adapters/poisoned")
            made = run.stage_text(stage, inputs, lambda: negative_set(study))
            done(run, stage, made)
    say(f"done: {folder}; next: loratomy probe {folder}")


def _attack(trigger: list[str], wanted: dict[str, str], seed: int) -> "Attack | None":
    """What the adapter is suspected of; None where no trigger is known."""
    from ..data.attacks.triggers import trigger_of
    from ..data.splits import make_attack

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
    from ..data.testsets import drawn

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
    from ..data.attacks.tasks import TASKS
    from ..data.references import told_apart

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


def _load(asked: dict[str, Any], sources: dict[str, Path]) -> "tuple[Subject, dict[str, Adapter]]":
    """The base and the adapters, all through the gate, before anything is written."""
    from ..core.adapter.factors import read_adapter

    study = asked["study"]
    subject = loaded_base(*(study[key] for key in ("base", "device", "dtype")))
    loaded = {
        role: read_adapter(
            folder,
            subject.shapes,
            ignore_modules=asked["ignore_modules"],
            base=subject.parameter,
        )
        for role, folder in sources.items()
    }
    for role, adapter in loaded.items():
        if sentence := of_size(subject, adapter, role):
            say(sentence)
    return subject, loaded


def _placed(
    subject: "Subject", rows: "list[Row]", words: list[str], name: str, new_tokens: int
) -> None:
    """Say what is lost of triggered rows; raise where nothing is left."""
    from ..evaluation.collect import check_triggered

    for line in check_triggered(subject, rows, words, new_tokens=new_tokens):
        say(f"warning: {name}: {line}")


def _write_sets(
    study: Study, sets: "dict[str, list[Row]]", choice: RenderingChoice, work: Path
) -> None:
    """Write the sets; clean prompts without completion get the model's own answer."""
    from ..core.records.io import save_record
    from ..core.rows import rows_to_jsonl
    from ..unlearning.trained.distill import own_answers

    save_record(choice, work, RENDERING_RECORD)
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
        (work / f"{name}.jsonl").write_text(rows_to_jsonl(rows), encoding="utf-8")
