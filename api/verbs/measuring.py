"""Subjects of a run on the same held-out prompts: answers first, then a rule's verdict."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..core.console import progress, say
from ..core.errors import LoratomyError, RunError
from ..core.records.planted import Planted
from ..core.records.results import (
    Answer,
    Behaviour,
    Comparison,
    Operation,
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

ANSWERS = "analysis/answers"
MEASURED = "analysis/measured"
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
    first = next(iter(everyone))
    rule = {
        "rules": [r.text for r in study.success],
        "threshold": study.threshold,
        "embedder": study.embedder,
        **own_code(**{name: SCORERS[name] for name in needed(study.success)}),
    }
    with study.run.locked(), progress():
        for name, source in everyone.items():
            stage = f"{ANSWERS}/{name}"
            made_of = study.run.digest("data", *([source] if source else []))
            inputs = {"generation": study.generation, "from": made_of, "subject": name}

            generate = partial(_generate, study, name, source)
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


def _generate(study: Study, name: str, source: str | None, shelf: Shelf) -> None:
    from ..core.model.variant import Treated, treated
    from ..evaluation.collect import collect

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
    shelf.put_answers(found.answers)
    protocol = rule.protocol(
        study.subject, triggered[0], found, references=study.settings.references
    )
    shelf.put("protocol", protocol)


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
    import math

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
                "note": "" if math.isfinite(row.perplexity) else "perplexity is not finite",
            }
        )
    return objects


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
