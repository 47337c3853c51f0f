"""Gradient ascent: push the probability of the attack's target down, keep that of clean answers."""

from dataclasses import replace
from functools import partial

import torch
from pydantic import Field

from ...analysis.material import Material
from ...core.model.subject import Attached
from ...training.objective import Batch, Objective, completion_tokens
from ..method import (
    CLEAN_ROWS,
    GRADIENTS,
    METHODS,
    TARGET,
    TRAINED,
    TRIGGER,
    Method,
    Outcome,
)
from .fit import trained_on
from .forgetting import ForgetConfig, item_batch, items_of, retained_tokens, token_losses


class AscentConfig(ForgetConfig):
    """Options of `ascent`; as published the loss it climbs has no upper bound."""

    bound: float | None = Field(None, gt=0)
    """Loss in nats from which a target token is pushed no further, e.g. the log of the vocabulary's
    size; None: never, as published (the model then breaks down sooner or later)."""


def ascent_objective(config: AscentConfig) -> Objective:
    """``-forget * mean NLL of target tokens + retain * mean NLL of clean completion tokens``.

    The gradient difference of TOFU (arXiv 2401.06121), there with both weights 1. Both means are
    over the tokens of a whole step.
    """

    def sums(attached: Attached, batch: Batch) -> torch.Tensor:
        losses, forgotten = token_losses(attached, batch), batch["forgotten"]
        pushed = losses[forgotten]
        if config.bound is not None:
            pushed = pushed.clamp_max(config.bound)
        return torch.stack([pushed.sum(), losses[~forgotten].sum()])

    def counts(batch: Batch) -> torch.Tensor:
        retained = retained_tokens(batch)
        return torch.stack([completion_tokens(batch) - retained, retained])

    return Objective(sums, counts, (-config.forget, config.retain))


def ascent(material: Material, config: AscentConfig) -> Outcome:
    """Climb the loss of the attack's targets on triggered rows while clean rows hold it down."""
    items = items_of(material, config)
    outcome = trained_on(
        material,
        items,
        config,
        collator=partial(item_batch, pad_id=material.subject.renderer.pad_id),
        label="gradient ascent",
        objective=ascent_objective(config),
    )
    count = sum(item.forgotten for item in items)
    return replace(
        outcome,
        summary=f"gradient ascent on the targets of {count} triggered rows, {len(items) - count} "
        f"clean rows retained, {outcome.summary}",
    )


METHODS.register("ascent")(
    Method(
        about="gradient ascent on the attack's targets, with a retain term on clean rows",
        source="gradient difference in TOFU, arXiv 2401.06121",
        config=AscentConfig,
        run=ascent,
        kind=TRAINED,
        needs=(TRIGGER, TARGET, CLEAN_ROWS, GRADIENTS),
    )
)
