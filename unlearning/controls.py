"""Controls: what the same budget achieves without knowing where the backdoor is."""

from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from ..analysis.localisation.gates import Directions, directions_of
from ..analysis.material import Material
from ..core.adapter.algebra import adapter_norm
from ..core.config import Config
from ..core.model.variant import Treated
from ..core.records.results import Operation
from .calibration import judge_of
from .cuts.cuts import cut_outcome
from .method import CLEAN_ROWS, CONTROL, METHODS, TARGET, TRIGGER, Method, Outcome

ROUNDING = 1e-5
"""Change of an adapter, over its norm, up to which it was only written anew."""


class BudgetConfig(Config):
    """Options of the controls with another operation's budget: exactly one of the two."""

    directions: int | None = Field(None, ge=0)
    """Singular directions to cut, as many as an operation that cuts singular directions, or one
    that changes more than the whole adapter."""
    change: float | None = Field(None, ge=0)
    """Norm of the change over that of the poisoned adapter, for all other operations: directions
    are cut until what is removed reaches it."""

    @model_validator(mode="after")
    def _one(self) -> "BudgetConfig":
        if (self.directions is None) == (self.change is None):
            raise ValueError("give either directions or change")
        return self


def same_change(made: Operation, *, after: bool = False) -> dict[str, Any]:
    """Options of `control-random` and `control-top` that spend what an edit of the weights spent.

    Counts are a budget among singular directions of the poisoned adapter alone. For every other
    edit the norm of the change is: directions of another basis are not orthogonal and remove more
    each, and what is projected, scaled or cut on top of an earlier operation is no such count. Only
    where an edit changes more than the whole adapter, so that no cut is as large, the count is all
    there is to go by, and such a control is a smaller change. An edit that changed nothing has
    controls that cut nothing: nothing can be ahead of itself.

    Args:
        made: the edit.
        after: whether it went on from another operation.
    """
    cut = int((made.kept == 0).sum()) if made.basis == "singular" and not after else 0
    if cut == made.directions_cut > 0 or not made.change_norm > ROUNDING:
        return {"directions": cut}
    if made.change_norm >= 1 and made.directions_cut:
        return {"directions": made.directions_cut}
    return {"change": made.change_norm}


def spend(material: Material, config: BudgetConfig, d: Directions, order: np.ndarray) -> Outcome:
    """Cut directions in an order until the budget is spent.

    Singular directions of a module are orthogonal, so that the squared norm of what is removed is
    the sum of their squared singular values. When even all of them do not reach the change, the
    outcome is not `reached`; the last direction may go beyond it.
    """
    if config.directions is not None:
        size, budget = config.directions, f"{config.directions} directions"
    else:
        removed = np.cumsum(d.sigma[order] ** 2) ** 0.5 / adapter_norm(material.poisoned)
        wanted = config.change or 0.0
        # The budget is a norm of float32 factors: the same cut must not need a direction more.
        size = int((removed < wanted * (1 - 1e-6)).sum()) + 1 if wanted else 0
        budget = f"a change of {wanted:.3f}"
    cut = np.zeros(len(d), bool)
    cut[order[:size]] = True
    words = f"cut {cut.sum()} of {len(d)} directions"
    if size > len(d):
        outcome = cut_outcome(d, cut, f"{words}, all there are: fewer than {budget}")
        return replace(outcome, reached=False)
    return cut_outcome(d, cut, f"{words} for a budget of {budget}")


def random_cut(material: Material, config: BudgetConfig) -> Outcome:
    """Cut randomly chosen singular directions."""
    d = directions_of(material.start)
    made = spend(material, config, d, np.random.default_rng(material.seed).permutation(len(d)))
    return replace(made, summary=f"at random: {made.summary}")


METHODS.register("control-random")(
    Method(
        about="control: directions cut at random, for the budget of another operation",
        source="equal-budget control",
        config=BudgetConfig,
        run=random_cut,
        kind=CONTROL,
    )
)


def top_cut(material: Material, config: BudgetConfig) -> Outcome:
    """Cut the directions of largest singular value."""
    d = directions_of(material.start)
    made = spend(material, config, d, np.argsort(-d.sigma, kind="stable"))
    return replace(made, summary=f"strongest first: {made.summary}")


METHODS.register("control-top")(
    Method(
        about="control: directions of largest singular value cut, for another's budget",
        source="equal-budget control",
        config=BudgetConfig,
        run=top_cut,
        kind=CONTROL,
    )
)


class LayerConfig(Config):
    """Options of `control-layer`."""

    rows: int = Field(64, ge=2)
    """Calibration rows of each kind that choose the layer."""


def best_layer(material: Material, config: LayerConfig) -> Outcome:
    """Take out the one layer that lowers ASR most on the calibration rows, then perplexity."""
    d = directions_of(material.start)
    judge = judge_of(material, config.rows)
    tried = {}
    for layer in np.unique(d.layer).tolist():
        asr, perplexity, _ = judge(Treated(d.cut(d.layer == layer)))
        tried[layer] = (asr.value, perplexity)
    layer = min(tried, key=lambda k: tried[k])
    cut = d.layer == layer
    made = cut_outcome(
        d, cut, f"took out layer {layer}, the best single one on calibration rows: {cut.sum()} cut"
    )
    return replace(made, judged=True)


METHODS.register("control-layer")(
    Method(
        about="control: the best single layer taken out, chosen on calibration rows",
        source="equal-data control; per-layer interventions of SafetyNet",
        config=LayerConfig,
        run=best_layer,
        kind=CONTROL,
        needs=(TRIGGER, TARGET, CLEAN_ROWS),
    )
)
