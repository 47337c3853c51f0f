"""Operations on the adapter of a study: made once, found standing, previewed."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import progress, say
from ..core.errors import LoratomyError
from ..core.records.results import Operation
from ..core.runs.provenance import own_code
from ..core.runs.shelf import Shelf
from ..study import Study
from .options import RESERVED
from .stages import done
from .trackers import tracking_of

if TYPE_CHECKING:
    from ..analysis.material import Material
    from ..core.rows import Row
    from ..evaluation.collect import Rule
    from ..unlearning import Outcome
    from ..unlearning.preview import Preview

FOUND_ROWS = "rows"
"""Beside an operation that made its triggered rows itself: these rows."""


def operate(
    study: Study,
    method: str,
    options: dict[str, Any],
    *,
    after: str = "",
    name: str = "",
    control_for: str = "",
    trackers: tuple[str, ...] = (),
    seed: int | None = None,
    fresh: bool = False,
) -> "Operation":
    """Make one operation of a study, unless it exists; returns its record.

    Under `torchrun` or `accelerate launch` the processes share the batches of a fit; the first
    writes.
    """
    from ..training.recipe import validated
    from ..training.resuming import last_whole
    from ..unlearning import METHODS, check_needs

    config = validated(METHODS[method].config, options, f"method {method}")
    label = name or (f"{after}-{method}" if after else method)
    if label in RESERVED or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", label):
        raise LoratomyError(
            f"--as {label[:40]!r}: use up to 80 letters, digits, '.', '-', '_', and none of "
            + ", ".join(RESERVED)
        )
    _check_after(study, after)
    has = study.has | ({"trigger": True} if _found_rows(study, after) else {})
    check_needs(method, config, **has)
    sources = ["data", "adapters/poisoned", *study.negative_stage]
    sources += [f"operations/{name}" for name in (after, control_for) if name]
    inputs = {
        **study.origin(*sources),
        "method": method,
        "config": config.model_dump(),
        "control_for": control_for,
        **({} if seed is None else {"seed": seed}),
        **own_code(**{method: METHODS[method]}),
    }
    stage = f"operations/{label}"
    with study.run.locked(), progress():

        def fill(shelf: Shelf) -> None:
            checkpoints = study.run.partial(stage, inputs, fresh=fresh)
            if begun := last_whole(checkpoints):
                say(f"{label}: going on from {begun.folder.name} of an earlier start")
            heard = tracking_of(study.run, stage, trackers, fresh=fresh)
            material = replace(_material(study, after, study.rule, checkpoints), tracking=heard)
            material = material if seed is None else replace(material, seed=seed)
            made = _operate(study, material, method, config, label, after, control_for)
            _keep(study, made, shelf)

        done(study.run, stage, study.run.make(stage, inputs, fill, fresh=fresh))
        return study.run.shelf(stage).get(Operation, "operation")


def _check_after(study: Study, after: str) -> None:
    """Raise where the operation to go on from is not there."""
    if after and not study.run.has(f"operations/{after}"):
        known = study.operations
        hint = f"operations so far: {', '.join(known)}" if known else "there are none yet"
        raise LoratomyError(f"--after {after!r}: no such operation; {hint}")


def _material(study: Study, after: str, rule: "Rule", work: Path) -> "Material":
    """What a method may look at in this run: rows that fit the context of the model."""
    from ..analysis.material import Material
    from ..evaluation.collect import fitting_rows

    def fitting(what: str, rows: "list[Row]") -> "list[Row]":
        subject, new = study.subject, rule.decoding.max_new_tokens
        kept, long = fitting_rows(subject.renderer, rows, subject.limit, new_tokens=new)
        if rows and not kept:
            raise LoratomyError(
                f"none of the {len(rows)} {what} leaves room for an answer of {new} tokens in the "
                f"context of {subject.limit} tokens; make the run with shorter prompts, a shorter "
                "trigger or fewer new tokens (open --max-new-tokens, --set measure.max_new_tokens)"
            )
        if long:
            say(
                f"{long} of {len(rows)} {what} leave no room for an answer of {new} tokens in the "
                f"context of {subject.limit} tokens and are left out"
            )
        return kept

    known = study.has["trigger"]
    negative = study.rows("negative_set") if study.negative_stage else []
    return Material(
        subject=study.subject,
        poisoned=study.poisoned,
        clean=study.clean,
        triggered=fitting("triggered rows", study.rows("poison_train")) if known else [],
        clean_rows=fitting("clean rows", study.rows("clean_train")),
        negative=fitting("negative rows", negative),
        make_rule=lambda: rule,
        seed=study.settings.seed,
        after=study.adapter(f"operations/{after}") if after else None,
        made_rows=fitting("found rows", _found_rows(study, after)),
        work=work,
    )


def _found_rows(study: Study, after: str) -> "list[Row]":
    """Triggered rows that the operation before made itself, or the one that it is a control of."""

    if not after:
        return []
    made = study.run.shelf(f"operations/{after}").get(Operation, "operation")
    for name in filter(None, (after, made.control_for)):
        if (found := study.run.shelf(f"operations/{name}").rows(FOUND_ROWS)) is not None:
            return found
    return []


def _operate(
    study: Study,
    material: "Material",
    method: str,
    config: Any,
    label: str,
    after: str,
    control_for: str,
) -> "tuple[Outcome, Operation]":
    from ..unlearning import operate as run_method

    before = None
    if after:
        before = study.run.shelf(f"operations/{after}").get(Operation, "operation")
    return run_method(
        method, material, config, subject=label, control_for=control_for, before=before
    )


def _keep(study: Study, made: "tuple[Outcome, Operation]", shelf: Shelf) -> None:
    outcome, record = made
    shelf.put_state(outcome.treated, study.subject)
    if outcome.rows:
        shelf.put_rows(FOUND_ROWS, outcome.rows)
    shelf.put("operation", record)


def previewed(
    study: Study, method: str, options: dict[str, Any], *, after: str = ""
) -> "Preview | str":
    """What an operation would do; a sentence where it finds that out from data.

    Raises:
        LoratomyError: an unknown method or option, or one that lacks what it needs.
    """
    from ..evaluation.collect import Rule
    from ..evaluation.generation import Decoding
    from ..evaluation.similarity import load_embedder
    from ..training.recipe import validated
    from ..unlearning import METHODS, check_needs
    from ..unlearning.method import CLEAN_ADAPTER
    from ..unlearning.preview import by_rule, preview

    config = validated(METHODS[method].config, options, f"method {method}")
    check_needs(method, config, **study.has)
    _check_after(study, after)
    if not by_rule(METHODS[method], config):
        shown = " or ".join(METHODS[method].settled_by)
        whole = not set(METHODS[method].still) - {CLEAN_ADAPTER}
        return (
            f"{method} finds out from data what it changes, so that it has to be run to be seen; "
            + (f"with {shown} given, --dry-run shows what it cuts; " if shown and whole else "")
            + "nothing was written"
        )
    with progress():
        at_once = study.settings.measure.batch_tokens
        rule = Rule(load_embedder("none"), decoding=Decoding(batch_tokens=at_once))
        material = _material(study, after, rule, Path())
        return preview(method, material, config)
