"""Subjects of a run on the same held-out prompts: answers first, then a rule's verdict."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.console import progress, say
from ..core.errors import LoratomyError, RunError
from ..core.records.planted import Planted
from ..core.records.results import (
    Answer,
    Behaviour,
    Comparison,
    Operation,
    OwnAnswers,
    Paired,
    Protocol,
    Rate,
    RuleRates,
)
from ..core.runs.provenance import own_code
from ..core.runs.run import Run
from ..core.runs.shelf import Shelf
from ..settings import Judged
from ..study import Study
from .stages import done

if TYPE_CHECKING:
    from ..core.model.batches import Encoded
    from ..core.model.variant import Treated
    from ..evaluation.collect import Collected, Rule

ANSWERS = "analysis/answers"
MEASURED = "analysis/measured"
OWN = "own"
"""Beside the answers of the first subject: its greedy ones to clean prompts, as token ids."""
VERDICT = "analysis/poisoning/verdict"
"""Whether `poison` made a backdoor."""
POISONING = ("poisoned", "base", "clean")
"""Subjects that the verdict of `poison` needs."""


def subjects(run: Run) -> dict[str, str | None]:
    """Name -> stage of its adapter, the one that others are compared with first."""
    found = {
        s.split("/", 1)[1]: s for s in run.stages if s.startswith(("adapters/", "operations/"))
    }
    if not found:
        raise LoratomyError(f"{run.root} has no adapter yet; run its first command again")
    first = "poisoned" if "poisoned" in found else next(iter(found))
    rest = [name for name in found if name not in (first, "clean")]
    order = [first, "base", *(["clean"] if "clean" in found and first != "clean" else []), *rest]
    return {name: found.get(name) for name in order}


def measure(
    study: Study,
    *,
    judged: Judged | None = None,
    only: Sequence[str] | None = None,
    fresh: bool = False,
) -> Comparison:
    """Measure every subject of a study that is not measured yet; returns all that are measured.

    Existing answers are not generated again; another rule judges them anew.

    Args:
        study: whose adapters and operations are measured.
        judged: how to judge instead of as the study says.
        only: these subjects, the first one (`subjects`) among them; None: all.
        fresh: measure everything again.
    """
    from ..evaluation.behaviour import check_references
    from ..evaluation.collect import check_targets
    from ..evaluation.scorers import SCORERS
    from ..evaluation.success import needed

    study = study if judged is None else replace(study, judged=judged)
    study.need_trigger("a comparison")
    everyone = {n: s for n, s in subjects(study.run).items() if only is None or n in only}
    for source in everyone.values():
        if source and (old := study.run.stale(source)):
            raise RunError(f"{old}; make it again with operate --fresh, or remove its folder")
    check_targets(study.rows("poison_test"), study.success)
    say_success(study)
    check_references(study.rows("poison_test"), study.rows("clean_val"), study.rule)
    first, reference = next(iter(everyone.items()))
    assert reference is not None
    rule = {
        "rules": [r.text for r in study.success],
        "threshold": study.threshold,
        "embedder": study.embedder,
        **own_code(**{name: SCORERS[name] for name in needed(study.success)}),
    }
    with study.run.locked(), progress():
        for name, source in everyone.items():
            stage = f"{ANSWERS}/{name}"
            sources = ["data", *([source] if source else [])]
            if name != first:
                sources += [reference, f"{ANSWERS}/{first}"]
            made_of = study.run.digest(*dict.fromkeys(sources))
            inputs = {"generation": study.generation, "from": made_of, "subject": name}

            generate = partial(_generate, study, name, source, reference)
            done(study.run, stage, study.run.make(stage, inputs, generate, fresh=fresh))
            known = [f"{ANSWERS}/{name}"] if name == first else [stage, f"{MEASURED}/{first}"]
            inputs = {**rule, "from": study.run.digest(*known)}
            stage = f"{MEASURED}/{name}"
            judge = partial(_judge, study, name, first)
            anew = fresh or study.run.differs(stage, inputs)
            done(study.run, stage, study.run.make(stage, inputs, judge, fresh=anew))
        if study.run.request["kind"] == "poison":
            _verdict(study.run, fresh=fresh)
    return load_comparison(study.run)


def say_success(study: Study) -> None:
    """Say what decides success, before anything is generated."""
    from ..evaluation.collect import wanted
    from ..evaluation.success import in_words, targets_in_words

    rows = study.rows("poison_test")
    own = "target" if any(row.target for row in rows) else "completion"
    targets = targets_in_words([wanted(row) for row in rows], own=own)
    say(f"success: {in_words(study.success[0], study.threshold, targets)}")


def _generate(study: Study, name: str, source: str | None, reference: str, shelf: Shelf) -> None:
    from ..core.model.variant import Treated, treated
    from ..evaluation.collect import collect, with_divergences

    state = Treated() if source is None else study.treated(source)
    triggered, clean = study.rows("poison_test"), study.rows("clean_val")
    rule = study.rule
    if state.temperature is not None:
        rule = replace(rule, decoding=replace(rule.decoding, temperature=state.temperature))
    with treated(study.subject, state):
        found = collect(study.subject, name, triggered, clean, rule)
    if found.mismatch:
        say(f"warning: {name}: {found.mismatch}")
    if not any(a.answer.strip() for a in found.answers):
        line = (
            f"{name} generates nothing: all of its {len(found.answers)} answers are empty; was it "
            f"trained with other prompts than {study.subject.renderer.rendering.about()}?"
        )
        if source is not None and study.run.request["kind"] == "evaluate":
            raise LoratomyError(line)
        say(f"warning: {line}")
    if source == reference:
        sums, counts = _own_answers(study, state, found, rule, shelf)
    else:
        sums, counts = _from_first(study, name, state, reference)
    shelf.put_answers(with_divergences(found.answers, sums, counts))
    protocol = rule.protocol(
        study.subject, triggered[0], found, references=study.settings.references
    )
    shelf.put("protocol", protocol)


def _own_answers(
    study: Study, state: "Treated", found: "Collected", rule: "Rule", shelf: Shelf
) -> tuple[np.ndarray, np.ndarray]:
    """Keep the greedy answers of the first subject, by which the others are compared with it.

    Returns:
        Its KL divergence from itself, which is 0, ``[row]``, and the answers' tokens, ``[row]``.
    """
    from ..core.model.variant import treated
    from ..evaluation.collect import check_room
    from ..evaluation.divergence import greedy_answers, packed

    own: Sequence[Encoded] = found.clean
    if rule.decoding.temperature > 0:
        sets = study.rows("poison_test"), study.rows("clean_val")
        _, clean, _ = check_room(study.subject, *sets, rule)
        with treated(study.subject, state):
            own = greedy_answers(study.subject, clean, rule.decoding, label="greedy answers")
    shelf.put(OWN, packed(own))
    return np.zeros(len(own)), np.array([len(row.completion) for row in own])


def _from_first(
    study: Study, name: str, state: "Treated", reference: str
) -> tuple[np.ndarray, np.ndarray]:
    """KL divergence of a subject over each of the first one's own answers, and their tokens.

    Args:
        study: in which they are.
        name: of the subject, for the progress bar.
        state: the model as the subject.
        reference: stage of the first subject's adapter.
    """
    from ..evaluation.divergence import divergences, unpacked

    first = reference.removeprefix("adapters/")
    own = unpacked(study.run.shelf(f"{ANSWERS}/{first}").get(OwnAnswers, OWN))
    return divergences(
        study.subject,
        study.adapter(reference),
        state,
        own,
        batch_tokens=study.rule.decoding.batch_tokens // 4,
        label=f"KL divergence of {name}",
    )


def _judge(study: Study, name: str, first: str, shelf: Shelf) -> None:
    from ..evaluation.behaviour import judge
    from ..evaluation.collect import Collected
    from ..evaluation.paired import paired

    answers_shelf = study.run.shelf(f"{ANSWERS}/{name}")
    protocol = answers_shelf.get(Protocol, "protocol")
    collected = Collected(answers_shelf.answers(), protocol.too_long, protocol.mismatch)
    other = [] if name == first else load_answers(study.run, first)
    operated = name not in (first, "base", "clean")  # only these have a before
    behaviour, answers = judge(collected, study.rule, before=other if operated else [])
    rule = study.rule
    protocol = replace(protocol, rule=rule.success[0].text, threshold=rule.threshold)
    shelf.put("behaviour", behaviour)
    shelf.put("protocol", protocol)
    if other:
        shelf.put("paired", paired(answers, other))
    shelf.put_scores(answers)


def _verdict(run: Run, *, fresh: bool) -> None:
    """The stage that says whether a backdoor was made, from what is measured now."""
    from ..evaluation.planted import planted

    stages = [f"{MEASURED}/{name}" for name in POISONING]
    inputs = {"from": run.digest(*stages)}

    def fill(shelf: Shelf) -> None:
        found = (run.shelf(stage).get(Behaviour, "behaviour") for stage in stages)
        poisoned, base, clean = found
        answers = {name: load_answers(run, name) for name in POISONING}
        shelf.put("planted", planted(poisoned, clean, base, answers))

    anew = fresh or run.differs(VERDICT, inputs)
    done(run, VERDICT, run.make(VERDICT, inputs, fill, fresh=anew))


def load_planted(run: Run) -> Planted | None:
    """Whether `poison` made a backdoor; None where that has not been looked at."""
    return run.shelf(VERDICT).get(Planted, "planted") if run.has(VERDICT) else None


def load_answers(run: Run, name: str) -> list[Answer]:
    """The judged answers behind one subject's figures."""
    answers = run.shelf(f"{ANSWERS}/{name}").answers()
    return run.shelf(f"{MEASURED}/{name}").scored(answers)


def measured(run: Run) -> list[str]:
    """Subjects that are measured: base, clean, poisoned, then the others as they were made."""
    names = list(subjects(run))
    order = [n for n in ("base", "clean", "poisoned") if n in names]
    order += [n for n in names if n not in order]
    return [n for n in order if run.has(f"{MEASURED}/{n}")]


def load_comparison(run: Run) -> Comparison:
    """All measured subjects of a run.

    Raises:
        LoratomyError: nothing is measured yet.
    """
    names = measured(run)
    if not names:
        raise LoratomyError(f"{run.root}: nothing is measured; run loratomy compare {run.root}")
    shelves = [run.shelf(f"{MEASURED}/{n}") for n in names]
    protocols = [shelf.get(Protocol, "protocol") for shelf in shelves]
    mismatch = next((p.mismatch for p in protocols if p.mismatch), "")
    return Comparison(
        protocol=replace(protocols[0], mismatch=mismatch),
        rows=tuple(shelf.get(Behaviour, "behaviour") for shelf in shelves),
        paired=tuple(s.get(Paired, "paired") for s in shelves if "paired" in s.names),
    )


def load_operations(run: Run) -> dict[str, Operation]:
    """The records of all operations by name."""
    stages = [s for s in run.stages if s.startswith("operations/")]
    return {s.split("/", 1)[1]: run.shelf(s).get(Operation, "operation") for s in stages}


def as_objects(
    comparison: Comparison, operations: dict[str, Operation], run: Run
) -> list[dict[str, Any]]:
    """The table as plain objects; what is not a finite number is null with a note."""
    paired = {p.subject: p for p in comparison.paired}
    objects = []
    for row in comparison.rows:
        made, pair = operations.get(row.subject), paired.get(row.subject)
        stage = f"adapters/{row.subject}"
        seconds = made.seconds if made else run.seconds(stage) if run.has(stage) else 0.0
        objects.append(
            {
                "subject": row.subject,
                "method": made.method if made else None,
                "asr": _rate(row.asr),
                "ftr": _rate(row.ftr),
                "ftr_untriggered": _rate(row.rules[0].ftr_untriggered),
                "ftr_clean": _rate(row.rules[0].ftr_clean),
                "rules": {r.rule: _readings(r) for r in row.rules},
                "perplexity": row.perplexity,
                "perplexity_change": pair.perplexity_change if pair else 0.0,
                "perplexity_change_low": pair.perplexity_low if pair else 0.0,
                "perplexity_change_high": pair.perplexity_high if pair else 0.0,
                "kl": row.kl,
                "kl_low": row.kl_low,
                "kl_high": row.kl_high,
                "kl_n": row.kl_n,
                "kl_tokens": row.kl_tokens,
                "asr_mcnemar_p": pair.asr_p if pair else None,
                "accuracy_mcnemar_p": pair.accuracy_p if pair else None,
                "clean_accuracy": _rate(row.clean_accuracy),
                "degenerate": _rate(row.degenerate),
                "degenerate_triggered": _rate(row.degenerate_triggered),
                "empty": row.empty,
                "distance": row.distance,
                "directions_cut": made.directions_cut if made else 0,
                "seconds": seconds,
                "too_long": row.too_long,
                "uninformative": row.rules[0].uninformative,
                "note": ", ".join(f"{what} is not finite" for what in _infinite(row)),
            }
        )
    return objects


def _infinite(row: Behaviour) -> list[str]:
    """Which of the costs of a subject are not finite."""
    return [what for what in ("perplexity", "kl") if not math.isfinite(getattr(row, what))]


def _readings(rule: RuleRates) -> dict[str, Any]:
    """The rates of a rule by both of its readings."""
    both = {"asr_whole": rule.asr_whole, "ftr_whole": rule.ftr_whole}
    return {"asr": _rate(rule.asr), "ftr": _rate(rule.ftr)} | {k: _rate(r) for k, r in both.items()}


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    return (
        None
        if rate is None
        else {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}
    )
