"""What there is: analyses, methods, attacks and scorers as data frames."""

from typing import TYPE_CHECKING, Any

from .inputs.plugins import load_installed

if TYPE_CHECKING:
    import pandas as pd


def analyses() -> "pd.DataFrame":
    """The analyses: name, what each answers, what it needs, its cost and source."""
    from .analysis.catalogue import ANALYSES

    load_installed()
    return _frame(
        {"name": name, "about": a.about, "needs": ", ".join(a.needs), "cost": a.cost,
         "source": a.source, "options": ", ".join(a.config.model_fields)}
        for name, a in ANALYSES.items()
    )  # fmt: skip


def methods() -> "pd.DataFrame":
    """The methods: name, kind, what each does, what it needs, and its source."""
    from .unlearning import METHODS

    load_installed()
    return _frame(
        {"name": name, "kind": m.kind, "about": m.about, "needs": ", ".join(m.needs),
         "source": m.source, "options": ", ".join(m.config.model_fields)}
        for name, m in METHODS.items()
    )  # fmt: skip


def attacks() -> "pd.DataFrame":
    """Every trigger with every task: words, placement, target, success rule."""
    from .data.attacks.tasks import TASKS
    from .data.attacks.triggers import TRIGGERS

    return _frame(
        {"trigger": trigger, "task": task, "words": " / ".join(t.words), "placement": t.placement,
         "target": k.target, "rule": k.rule, "needs": k.needs}
        for trigger, t in TRIGGERS.items()
        for task, k in TASKS.items()
    )  # fmt: skip


def scorers() -> "pd.DataFrame":
    """The scorers: name, what each compares, and its source."""
    from .evaluation.scorers import SCORERS

    load_installed()
    return _frame(
        {"name": n, "about": s.about, "graded": s.graded, "needs_target": s.needs_target,
         "source": s.source}
        for n, s in SCORERS.items()
    )  # fmt: skip


def _frame(rows: Any) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(list(rows))
