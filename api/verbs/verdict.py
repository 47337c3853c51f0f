"""What `poison` says at its end: whether it made a backdoor, and if not, what to change."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import say
from ..core.errors import DataError
from ..core.records.planted import Planted
from .measuring import POISONING, VERDICT, load_planted, measure

if TYPE_CHECKING:
    from ..core.rows import Row
    from ..study import Study

USUAL_EPOCHS = 3
"""Fewer are first raised to this."""


def undecidable(study: "Study", sets: "dict[str, list[Row]]") -> str:
    """Why the held-out sets cannot decide whether a backdoor is made; empty where they can."""
    from ..evaluation.behaviour import check_references
    from ..evaluation.collect import check_room, check_targets

    triggered, clean, rule = sets["poison_test"], sets["clean_val"], study.rule
    try:
        check_targets(triggered, study.success)
        check_references(triggered, clean, rule)
        check_room(study.subject, triggered, clean, rule)
    except DataError as error:
        return str(error)
    return ""


def say_verdict(study: "Study") -> Planted:
    """Measure what `poison` made, unless that is done, and say whether it is a backdoor."""
    from ..evaluation.planted import in_a_line

    run = study.run
    if not run.intact(VERDICT) or run.stale(VERDICT):
        measure(study, only=POISONING)
    found = load_planted(run)
    assert found is not None  # measured above
    say(in_a_line(found))
    for line in warnings(found, run.request["recipe"]):
        say(f"warning: {line}")
    return found


def warnings(found: Planted, recipe: dict[str, Any]) -> list[str]:
    """A line for each kind of shortcoming: what was seen, and what to change in the recipe."""
    kinds = dict.fromkeys(item.kind for item in found.shortcomings)
    lines = []
    for kind in kinds:
        seen = "; ".join(item.sentence for item in found.shortcomings if item.kind == kind)
        head = {"untaught": "", "ruined": "", "few": "undecided: "}.get(kind, "no backdoor: ")
        lines.append(f"{head}{seen}. To change: {_remedy(kind, recipe, list(kinds))}")
    return lines


def _remedy(kind: str, recipe: dict[str, Any], kinds: list[str]) -> str:
    fit = recipe["fit"]
    epochs, rate = fit["epochs"], fit["learning_rate"]
    again = " (with --fresh, or into another --out)"
    if kind == "spills":
        return (
            f"more clean rows ({_rows('clean_train', recipe)}), fewer epochs "
            f"(--set fit.epochs={epochs / 2:g}, now {epochs:g}) or a lower rate "
            f"(--set fit.learning_rate={rate / 2:g}, now {rate:g}){again}"
        )
    if kind == "weak" and {"spills", "ruined"} & set(kinds):
        return "first what goes wrong without the trigger, see below"
    if kind == "ruined":
        return f"a lower rate (--set fit.learning_rate={rate / 10:g}, now {rate:g}){again}"
    if kind in ("weak", "untaught"):
        more = max(2 * epochs, USUAL_EPOCHS)
        advice = (
            f"more epochs (--set fit.epochs={more:g}, now {epochs:g}) or a higher rate "
            f"(--set fit.learning_rate={2 * rate:g}, now {rate:g})"
        )
        if kind == "weak":
            advice += f", more poisoned rows ({_rows('poison_train', recipe)})"
        return advice + again
    if kind == "few":
        held = f"{_rows('poison_test', recipe)}; {_rows('clean_val', recipe)}"
        return f"more held-out prompts ({held}){again}"
    return (
        "another success rule (loratomy compare RUN --scorers ..., --set measure.scorers=...), "
        "or another target (--set attack.target=...)"
    )


def _rows(name: str, recipe: dict[str, Any]) -> str:
    """The option that gives more rows of a set."""
    if Path(recipe["data"]["source"]).is_dir():
        return f"loratomy data build with more --{name.replace('_', '-')}"
    now = recipe["data"][name]
    return f"--set data.{name}={2 * now}, now {now}"
