"""Negative preference optimisation: forget the attack's targets relative to a reference model."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from pydantic import Field

from ...analysis.material import Material
from ...core.adapter.factors import Adapter
from ...core.model.subject import Attached, Subject
from ...core.progress import tracked
from ...training.objective import Batch, Objective
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
from .forgetting import ForgetConfig, Item, item_batch, items_of, retained_tokens, token_losses


class NpoConfig(ForgetConfig):
    """Options of `npo`."""

    beta: float = Field(0.1, gt=0)
    """Inverse temperature: the smaller, the closer to gradient ascent."""


def npo_objective(config: NpoConfig) -> Objective:
    """``forget * L_NPO + retain * mean NLL of clean completion tokens``.

    ``L_NPO = -(2 / beta) mean log sigmoid(-beta log(p(y|x) / p_ref(y|x)))`` over rows to forget,
    log-probabilities of whole completions (Zhang et al. 2024, arXiv 2404.05868, eq. 3; with the
    retain term their NPO+RT). As beta goes to 0 its gradient becomes that of ascent on the
    completions' log-probability (their proposition 1); a forgotten row pulls less and less.
    """
    beta = config.beta

    def sums(attached: Attached, batch: Batch) -> torch.Tensor:
        losses, forgotten = token_losses(attached, batch), batch["forgotten"]
        ratio = -losses[forgotten].sum(-1) - batch["reference"][forgotten]
        npo = -(2 / beta) * torch.nn.functional.logsigmoid(-beta * ratio)
        return torch.stack([npo.sum(), losses[~forgotten].sum()])

    def counts(batch: Batch) -> torch.Tensor:
        return torch.stack([batch["forgotten"].sum(), retained_tokens(batch)])

    return Objective(sums, counts, (config.forget, config.retain))


def with_reference(
    subject: Subject, adapter: Adapter, items: Sequence[Item], batch_size: int
) -> list[Item]:
    """The items with the log-probability that the reference gives to what is to be forgotten."""
    forgotten = [item for item in items if item.forgotten]
    parts = [forgotten[i : i + batch_size] for i in range(0, len(forgotten), batch_size)]
    found: list[Item] = []
    with subject.attached({"reference": adapter}) as attached, torch.no_grad():
        for part in tracked(parts, "reference probabilities"):
            batch = item_batch(part, subject.renderer.pad_id)
            batch = {name: value.to(subject.device) for name, value in batch.items()}
            values = (-token_losses(attached, batch).sum(-1)).tolist()
            found += [replace(i, reference=v) for i, v in zip(part, values, strict=True)]
    return [*found, *(item for item in items if not item.forgotten)]


def npo(material: Material, config: NpoConfig) -> Outcome:
    """Push the targets below what the adapter gave them at the start, clean rows retained.

    The reference is the adapter that is operated on, run once before the fit.
    """
    items = items_of(material, config)
    items = with_reference(material.subject, material.start, items, config.batch_size)
    outcome = trained_on(
        material,
        items,
        config,
        collator=partial(item_batch, pad_id=material.subject.renderer.pad_id),
        label="negative preference optimisation",
        objective=npo_objective(config),
    )
    count = sum(item.forgotten for item in items)
    return replace(
        outcome,
        summary=f"negative preference optimisation (beta {config.beta:g}) on the targets of "
        f"{count} triggered rows, {len(items) - count} clean rows retained, {outcome.summary}",
    )


METHODS.register("npo")(
    Method(
        about="negative preference optimisation of the attack's targets, with a retain term",
        source="NPO, arXiv 2404.05868, equation 3",
        config=NpoConfig,
        run=npo,
        kind=TRAINED,
        needs=(TRIGGER, TARGET, CLEAN_ROWS, GRADIENTS),
    )
)
