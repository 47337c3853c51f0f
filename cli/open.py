"""`loratomy open`: make a run from somebody's own base and adapter."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import DataError, LoratomyError
from ..core.runs import RunFolder, run_path
from .console import progress, say
from .options import (
    BATCH_HELP,
    EMBEDDER_HELP,
    PLACEMENT_HELP,
    SCORERS_HELP,
    TASK_HELP,
    TRIGGER_HELP,
)
from .sources import adapter_sums, copy_adapter, noted, recorded_rendering, run_name
from .study import Study, base_fingerprint, base_folder, digest, done, negative_set

if TYPE_CHECKING:
    from collections import Counter

    from ..core.adapters import Adapter
    from ..core.rows import Row
    from ..core.subject import Subject
    from ..training.datasets import Attack

PLAIN_TEMPLATES = ("{prompt}\n", "{prompt} ", "{prompt}", "{prompt}\n\n")
"""Tried, and the choice said, when the tokenizer has no chat template."""


def command(
    base: Annotated[str, typer.Option(help="Base model: a folder, a hub id, or wren.")],
    adapter: Annotated[Path, typer.Option(help="Folder of the suspicious PEFT adapter.")],
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
    clean_adapter: Annotated[
        Path | None, typer.Option(help="A clean adapter on the same base, for the difference.")
    ] = None,
    placement: Annotated[str, typer.Option(help=PLACEMENT_HELP)] = "",
    template: Annotated[
        str | None,
        typer.Option(help="Plain template with {prompt}, or chat; default: the tokenizer's."),
    ] = None,
    other_template: Annotated[
        bool, typer.Option(help="Allow another template than the adapter was trained with.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<name>.")] = None,
    name: Annotated[str, typer.Option(help="Name of the run; default: the adapter's.")] = "",
    ignore_module: Annotated[
        list[str] | None, typer.Option(help="Stored module that the base lacks; leave it out.")
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
    from ..training.datasets import own_clean_sets, own_sets

    wanted = {"--target": target, "--task": task, "--data": data, "--placement": placement}
    attack = _attack(trigger or [], wanted, seed)
    folder = run_path(name or run_name(adapter, ""), out)
    known = recorded_rendering(adapter)
    if known and template is not None and template != known.template and not other_template:
        raise LoratomyError(
            f"the adapter was trained with the template {known.template!r}, not {template!r}; to "
            "go on all the same, add --other-template"
        )
    clean_rows, poisoned_rows = _read(prompts, data)
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
            "poisoned": adapter_sums(adapter),
            "clean": adapter_sums(clean_adapter) if clean_adapter else None,
        },
        "prompts": digest(clean_rows),
        "data": digest(poisoned_rows),
        "ignore_modules": sorted(ignore_module or []),
        "study": {
            "base": base,
            "template": template if template is not None or known is None else known.template,
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
    sources = {"poisoned": adapter} | ({"clean": clean_adapter} if clean_adapter else {})
    subject, loaded = _load(asked, sources)
    if attack:
        sets = own_sets(clean_rows, poisoned_rows, attack, seed=seed)
    else:
        sets = own_clean_sets(clean_rows, seed=seed)
    if attack:
        for name in ("poison_train", "poison_test"):
            _placed(subject, sets[name], asked["study"]["words"], name, max_new_tokens)
    asked["study"]["template"] = _template(asked, subject, loaded["poisoned"], sets)
    run = RunFolder.create(folder, asked=asked, fresh=fresh)
    study = Study(run)
    _ = study.subject, study.rule  # what cannot be loaded is an error before all writing
    with run.locked(fresh=fresh), progress():
        for role, source in sources.items():
            made = run.stage(f"adapters/{role}", asked["adapters"], partial(copy_adapter, source))
            done(run, f"adapters/{role}", made)
        made = run.stage("data", asked, partial(_write_sets, study, sets))
        done(run, "data", made)
        if attack:
            stage, inputs = "data/negative_set.jsonl", study.origin("data", "adapters/poisoned")
            made = run.stage_text(stage, inputs, lambda: negative_set(study))
            done(run, stage, made)
    say(f"done: {folder}; next: loratomy probe {folder}")


def _attack(trigger: list[str], wanted: dict[str, str], seed: int) -> "Attack | None":
    """What the adapter is suspected of; None where no trigger is known."""
    from ..training.datasets import make_attack
    from ..training.triggers import trigger_of

    target, task, data, placement = (value or None for value in wanted.values())
    if not trigger:
        if given := [option for option, value in wanted.items() if value]:
            raise DataError(
                f"{', '.join(given)} without --trigger: prompts are triggered, and have targets, "
                "by a trigger; give it, or leave this out for a run of clean prompts alone"
            )
        return None
    if not (target or task or data):
        raise DataError("give --target TEXT, --task NAME, or --data FILE with targets")
    if target and data:
        raise DataError("give either --target TEXT or --data FILE, whose rows have their own")
    return make_attack(trigger_of(trigger, placement), task or "fixed", target=target, seed=seed)


def _read(prompts: str, data: str) -> "tuple[list[Row], list[Row]]":
    from ..training.prompts import everyday_prompts

    with noted() as notes:
        clean = _kept(prompts, notes) if prompts else everyday_prompts()
        return clean, _kept(data, notes) if data else []


def _kept(source: str, notes: "Counter[str]") -> "list[Row]":
    from ..training.formats import read_data
    from ..training.testsets import kept

    return kept(read_data(source, notes=notes), limit=None, seed=0, what=source)


def _load(asked: dict[str, Any], sources: dict[str, Path]) -> "tuple[Subject, dict[str, Adapter]]":
    """The base and the adapters, all through the gate, before anything is written."""
    from ..core.adapters import read_adapter
    from ..core.subject import load_subject

    study = asked["study"]
    say(f"loading the base {study['base']}")
    subject = load_subject(
        study["base"],
        template=study["template"],
        device=study["device"],
        dtype=study["dtype"],
        path=base_folder(study["base"]),
        plain_if_needed=PLAIN_TEMPLATES[0],
    )
    loaded = {
        role: read_adapter(folder, subject.shapes, ignore_modules=asked["ignore_modules"])
        for role, folder in sources.items()
    }
    return subject, loaded


def _placed(
    subject: "Subject", rows: "list[Row]", words: list[str], name: str, new_tokens: int
) -> None:
    """Say what is lost of triggered rows; raise where nothing is left."""
    from ..analysis.asking import check_triggered

    for line in check_triggered(subject, rows, words, new_tokens=new_tokens):
        say(f"warning: {name}: {line}")


def _template(
    asked: dict[str, Any], subject: "Subject", adapter: "Adapter", sets: "dict[str, list[Row]]"
) -> str:
    """The template of the run: as given, the chat template, or the likeliest plain one.

    Without chat template the plain one under which the adapter's target is likeliest after
    triggered prompts is taken, and said; without trigger the first. A trigger that leaves no token
    is an error here.
    """
    from ..analysis.pairs import make_pairs
    from ..analysis.template import target_likelihood

    given, chosen = asked["study"]["template"], subject.renderer.template
    if not asked["study"]["words"]:
        if given is None and chosen != "chat":
            say(
                f"no chat template, and no trigger to tell by: plain prompts {chosen!r}; if the "
                "adapter was trained with another one, give it with --template"
            )
        return chosen
    rows = sets["poison_train"][:16]
    with subject.attached({"poisoned": adapter}):
        if given is None and chosen != "chat":
            found = {
                t: target_likelihood(
                    replace(subject, renderer=replace(subject.renderer, template=t)), rows
                )
                for t in PLAIN_TEMPLATES
            }
            chosen = max(found, key=lambda t: found[t])
            say(
                f"no chat template: plain prompts {chosen!r} (the target is likeliest there, "
                f"{found[chosen]:.2f} nats a token; another one with --template)"
            )
        elif given is None:
            chat = target_likelihood(subject, rows)
            other = target_likelihood(_rendering(subject, PLAIN_TEMPLATES[0]), rows)
            if other > chat + 1.0:
                say(
                    f"warning: the target is likelier after plain prompts ({other:.2f} nats a "
                    f"token) than in the chat template ({chat:.2f}); was the adapter trained "
                    f"with --template {PLAIN_TEMPLATES[0]!r}?"
                )
    make_pairs(_rendering(subject, chosen).renderer, rows, target_tokens=1, seed=0)
    return chosen


def _rendering(subject: "Subject", template: str) -> "Subject":
    return replace(subject, renderer=replace(subject.renderer, template=template))


def _write_sets(study: Study, sets: "dict[str, list[Row]]", work: Path) -> None:
    """Write the sets; clean prompts without completion get the model's own answer."""
    from ..core.rows import rows_to_jsonl
    from ..unlearning.distill import own_answers

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
