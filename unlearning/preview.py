"""What an edit would do, before it is made: its size, and its effect on a few calibration rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..analysis.localisation.attribution import clean_cost, target_attribution
from ..analysis.localisation.gates import directions_of, gated_model
from ..analysis.material import Material
from ..core.adapter.algebra import adapter_norm
from ..core.adapter.factors import Adapter, layer_of, uniform
from ..core.config import Config
from ..core.model.batches import Encoded, encode, encode_target, token_log_probs
from ..core.model.variant import Treated, treated
from ..core.progress import report
from ..evaluation.perplexity import perplexity
from .calibration import DialConfig, halves
from .method import (
    CLEAN_ADAPTER,
    METHODS,
    Method,
    Outcome,
    changes,
    check_needs,
    needed,
)
from .plan import PlanConfig, gates_of

FEW = 16
"""Calibration rows of each kind behind the effects."""
CALIBRATION: int = DialConfig.model_fields["rows"].default
"""Calibration rows that methods choose on by default; the few are the first of these."""
TARGET_PROBABILITY, TARGET_LOG_PROBABILITY, CLEAN_PERPLEXITY = (
    "probability of the target's first token",
    "its log-probability, nats",
    "clean perplexity",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleChange:
    """What happens to one module."""

    module: str
    """Its name."""
    layer: int
    """Its layer, -1 outside the layers."""
    named: int | None
    """Singular directions cut or scaled; None where the edit is not made of directions."""
    directions: int
    """Singular directions that it has."""
    share: float
    """Frobenius norm of its change over that of the whole adapter; squares add up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A figure with and without the edit, measured by forward passes without generation."""

    name: str
    """What is measured."""
    n: int
    """Rows behind it."""
    before: float
    """Without the edit."""
    after: float
    """With it."""
    estimate: float | None
    """What gradients at the uncut adapter would have it be; None where the edit has no gates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """An edit that has not been made."""

    summary: str
    """What would be done, in a sentence."""
    modules: tuple[ModuleChange, ...]
    """Modules that change, in order."""
    cut: int | None
    """Singular directions cut; None where the edit is not made of directions."""
    scaled: int | None
    """Singular directions scaled."""
    directions: int
    """Singular directions of the adapter operated on."""
    change_norm: float
    """Frobenius norm of the change, over that of the adapter operated on."""
    bytes_before: int
    """Bytes of the factors as they would be written now."""
    bytes_after: int
    """Bytes of the new factors, and of replaced base weights, as written; all modules are written
    with the largest rank left in one of them."""
    effects: tuple[Effect, ...]
    """What it would do on calibration rows."""
    missing: tuple[str, ...]
    """What cannot be estimated, a sentence each."""


def by_rule(method: Method, config: Config) -> bool:
    """Whether adapter and options alone decide the edit, so that it can be shown beforehand."""
    return not set(needed(method, config)) - {CLEAN_ADAPTER}


def preview(name: str, material: Material, config: Config) -> Preview:
    """What a method that decides by its options would do to the adapter.

    Args:
        name: of a method for which `by_rule` holds.
        material: what it would operate on; the first of its calibration rows are looked at.
        config: its options.

    Raises:
        LoratomyError: what `operate` would raise.
    """
    assert by_rule(METHODS[name], config)
    check_needs(name, config, trigger=True, target=True, clean_adapter=material.clean is not None)
    material = replace(material, poisoned=material.start, after=None)
    outcome = METHODS[name].run(material, config)
    d = directions_of(material.start)
    gates = None if outcome.cut is None else (~outcome.cut).astype(float)
    if isinstance(config, PlanConfig):
        gates, _ = gates_of(d, config)
    effects, missing = _effects(material, outcome, gates)
    squared = changes(material, outcome)
    whole = adapter_norm(material.start)
    weights = sum(w.numel() * w.element_size() for w in outcome.weights.values())
    return Preview(
        summary=outcome.summary,
        modules=_modules(material.start, squared, whole, gates),
        cut=None if gates is None else int((gates == 0).sum()),
        scaled=None if gates is None else int(((gates != 0) & (gates != 1)).sum()),
        directions=len(d),
        change_norm=sum(squared.values()) ** 0.5 / whole,
        bytes_before=stored_bytes(material.start),
        bytes_after=weights + (stored_bytes(outcome.adapter) if outcome.adapter else 0),
        effects=effects,
        missing=missing,
    )


def stored_bytes(adapter: Adapter) -> int:
    """Bytes of an adapter's factors as they are written, without the file's header."""
    _, _, modules = uniform(adapter)
    return sum(4 * (f.a.numel() + f.b.numel()) for f in modules.values())


def _modules(
    start: Adapter, squared: dict[str, float], whole: float, gates: np.ndarray | None
) -> tuple[ModuleChange, ...]:
    d = directions_of(start)
    names, found = d.names, []
    for name in squared:
        here = d.module == names.index(name) if name in names else np.zeros(len(d), bool)
        named = None if gates is None else int((gates[here] != 1).sum())
        share = squared[name] ** 0.5 / whole
        if named or (named is None and share > 1e-6):
            found.append(
                ModuleChange(
                    module=name,
                    layer=layer_of(name),
                    named=named,
                    directions=int(here.sum()),
                    share=share,
                )
            )
    return tuple(found)


def _effects(
    material: Material, outcome: Outcome, gates: np.ndarray | None
) -> tuple[tuple[Effect, ...], tuple[str, ...]]:
    """Target and clean behaviour on calibration rows, and what cannot be estimated."""
    subject, missing = material.subject, []
    most = material.rule.decoding.batch_tokens // 4
    clean = halves(material.clean_rows, CALIBRATION)[1][:FEW]
    targets: list[Encoded] = []
    if not material.triggered:
        missing.append("the run knows no trigger: the effect on the target is unknown")
    elif not all(row.completion for row in material.triggered):
        missing.append("the target is not known: the effect on it is unknown")
    else:
        triggered = halves(material.triggered, CALIBRATION)[1][:FEW]
        targets = [encode_target(subject.renderer, row, tokens=1) for row in triggered]
    seen, values = [Treated(material.start), outcome.treated], []
    for done, state in enumerate(seen, 1):
        with treated(subject, state):
            value, tokens = perplexity(subject, clean, batch_tokens=most)
            found = token_log_probs(subject, targets, batch_tokens=most)
        logs = np.array([row.sum() for row in found])
        values.append((logs, value))
        report("with and without the edit", done, len(seen))
    (logs, before), (logs_after, after) = values
    slope, cost = None, None
    if gates is not None:
        slope, cost = _first_order(material, targets, clean, gates)
    effects = []
    if targets:
        logs_before = float(logs.mean())
        guess = None if slope is None else logs_before + slope
        pair = (float(np.exp(logs).mean()), float(np.exp(logs_after).mean()))
        effects += [
            _effect(TARGET_PROBABILITY, len(logs), *pair, None),
            _effect(
                TARGET_LOG_PROBABILITY, len(logs), logs_before, float(logs_after.mean()), guess
            ),
        ]
    guess = None if cost is None else before * float(np.exp(cost * len(clean) / tokens))
    effects.append(_effect(CLEAN_PERPLEXITY, len(clean), before, after, guess))
    return tuple(effects), tuple(missing)


def _effect(name: str, n: int, before: float, after: float, estimate: float | None) -> Effect:
    return Effect(name=name, n=n, before=before, after=after, estimate=estimate)


def _first_order(
    material: Material, targets: Sequence[Encoded], clean: Sequence, gates: np.ndarray
) -> tuple[float | None, float]:
    """Estimated change of the target's log-probability and clean loss per row, nats.

    The first is linear in the gates; the second is the diagonal Fisher term, quadratic in them.
    """
    subject, d = material.subject, directions_of(material.start)
    encoded = [encode(subject.renderer, row, limit=subject.limit) for row in clean]
    slope = None
    with gated_model(subject, d) as gated:
        if targets:
            slope = float(target_attribution(gated, targets, batch_size=4) @ (gates - 1))
        cost = float(clean_cost(gated, encoded) @ (1 - gates) ** 2)
    return slope, cost
