"""Profiles of what is seen in activations: probes, consistency, attention to the trigger."""

import numpy as np

from ...core.errors import DataError
from ...core.records.across import Profile
from ...core.records.activations import Consistency, Probes, TriggerAttention
from ...core.records.lens import LogitLens
from ...core.stats import bootstrap_weights
from .profiles import deepest, largest, profile, profiles


@profiles.register
def _(record: Probes, layers: int) -> tuple[Profile, ...]:
    subject, both = record.subjects.index("poisoned"), len(record.negatives) - 1
    out = []
    for p, place in enumerate(record.places):
        kinds = (
            ("auroc", "AUROC", 0.5, record.auroc[subject, p, both]),
            ("gain", "AUROC above the base's", 0.0, record.gain[subject - 1, p]),
        )
        for key, unit, floor, values in kinds:
            out.append(
                _activations(
                    f"probes-{key}-{place}",
                    "probes",
                    "Linear probes for the trigger, poisoned adapter",
                    f"{unit}, {place}",
                    unit,
                    values,
                    floor,
                    record.n_prompts,
                    layers,
                    shift=1.0,
                )
            )
    return tuple(out)


@profiles.register
def _(record: Consistency, layers: int) -> tuple[Profile, ...]:
    poisoned = record.subjects.index("poisoned")
    return tuple(
        _activations(
            f"consistency-{other}",
            "consistency",
            "How much more a layer turns the residual with the trigger, poisoned adapter",
            f"against {other}",
            "difference of 1 − cos",
            record.difference[poisoned, i],
            0.0,
            record.n_prompts,
            layers,
        )
        for i, other in enumerate(record.conditions[1:])
    )


@profiles.register
def _(record: TriggerAttention, layers: int) -> tuple[Profile, ...]:
    poisoned = record.subjects.index("poisoned")
    return tuple(
        _activations(
            f"attention-{query}",
            "attention",
            "Attention to the trigger, poisoned adapter above the base, strongest head",
            f"from {query}",
            "share of attention",
            largest(record.difference[poisoned - 1, q]),
            0.0,
            record.n_prompts,
            layers,
        )
        for q, query in enumerate(record.queries)
    )


@profiles.register
def _(record: LogitLens, layers: int) -> tuple[Profile, ...]:
    poisoned, column = record.subjects.index("poisoned"), _last(record)
    each = record.log_prob[poisoned, :, :, column]
    each = each[np.isfinite(each).all(1)]
    draws = np.exp(bootstrap_weights(len(each)) @ each) if len(each) else None
    return (
        profile(
            "lens-target",
            group="lens",
            question="Logit lens, poisoned adapter on triggered prompts",
            title="the target's first token at the last place",
            unit="probability, geometric mean over prompts",
            measure="",
            values=_filled(np.exp(record.decided_log_prob[poisoned]), layers, "a logit lens"),
            floor=0.0,
            n=len(record.prompts),
            undefined="" if len(each) else "no prompt has a last place",
            shift=1.0,
            landmark="rise",
            draws=draws,
        ),
    )


def _last(record: LogitLens) -> int:
    return max(i for i, role in enumerate(record.column_roles) if role == "last")


def _activations(
    key: str,
    group: str,
    question: str,
    title: str,
    unit: str,
    values: np.ndarray,
    floor: float,
    n: int,
    layers: int,
    *,
    shift: float = 0.5,
) -> Profile:
    values = _filled(values, layers, group)
    nothing = not np.isfinite(values[:, 0]).any()
    return profile(
        key,
        group=group,
        question=question,
        title=title,
        unit=unit,
        measure="",
        values=values,
        floor=floor,
        n=n,
        undefined="undefined in every layer" if nothing else "",
        shift=shift,
    )


def _filled(values: np.ndarray, layers: int, what: str) -> np.ndarray:
    """The values, one row for each layer of the base.

    Raises:
        DataError: there are more or fewer.
    """
    if len(values) != layers:
        raise DataError(f"{what} of {len(values)} layers, but the base has {layers}")
    return values


@deepest.register
def _(record: LogitLens) -> tuple[int, bool]:
    return record.decided_log_prob.shape[1] - 1, True


@deepest.register
def _(record: Probes) -> tuple[int, bool]:
    return record.auroc.shape[3] - 1, True


@deepest.register(Consistency)
@deepest.register(TriggerAttention)
def _(record: Consistency | TriggerAttention) -> tuple[int, bool]:
    return record.difference.shape[2] - 1, True
