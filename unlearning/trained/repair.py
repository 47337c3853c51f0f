"""Repair: a few steps on what is left, toward the model's own answers."""

from dataclasses import replace
from functools import partial

import torch
from pydantic import Field

from ...analysis.material import Material
from ...core.model.subject import Attached
from ...training.objective import Batch, Objective, completion_tokens
from ..method import CLEAN_ROWS, GRADIENTS, METHODS, TRAINED, TRIGGER, Method, Outcome
from .distill import (
    distill_batch,
    distill_rows,
    divergence,
    own_answers,
    side_logits,
)
from .fit import FitConfig, trained_on

TEACHER = "teacher"


class RepairConfig(FitConfig):
    """Options of `repair`; the rate is the published one halved, gentler than from further off."""

    epochs: float = Field(4, gt=0)
    """Passes over the rows."""
    batch_size: int = Field(16, ge=1)
    """Rows per step, shared by the processes."""
    triggered_rows: int = Field(100, ge=1)
    """Triggered prompts, at most."""
    clean_rows: int = Field(200, ge=1)
    """Clean prompts, at most."""


def _sums(attached: Attached, batch: Batch) -> torch.Tensor:
    """Divergence from the poisoned adapter's answers without the trigger, summed over tokens."""
    with attached.using(TEACHER), torch.no_grad():
        teacher = side_logits(attached.subject.model, batch, "teacher_")
    student = side_logits(attached.subject.model, batch)
    return divergence(student, teacher).sum()[None]


def repair_objective() -> Objective:
    """Mean divergence per token from the poisoned adapter's answers without the trigger."""
    return Objective(_sums, lambda batch: completion_tokens(batch)[None])


def repair(material: Material, config: RepairConfig) -> Outcome:
    """Fit the remaining directions to the model's own distribution.

    On a triggered prompt the teacher is the poisoned adapter on the same prompt without trigger,
    on a clean prompt the poisoned adapter itself (self-distillation, Hinton et al. 2015, arXiv
    1503.02531). Directions that were cut have no gradient and stay cut. After an operation that
    found its triggered rows itself these are taken, and the trigger need not be known.
    """
    subject = material.subject
    triggered = list((material.made_rows or material.triggered)[: config.triggered_rows])
    clean = list(material.clean_rows[: config.clean_rows])
    with subject.attached({"own": material.poisoned}):
        natural = own_answers(subject, triggered, material.rule, label="own answers")
    kept, made = distill_rows(subject.renderer, [*natural, *clean], limit=subject.limit)
    taught = sum(row.triggered for row in kept)
    outcome = trained_on(
        material,
        made,
        config,
        collator=partial(distill_batch, pad_id=subject.renderer.pad_id),
        label="repair",
        objective=repair_objective(),
        others={TEACHER: material.poisoned},
        published=5e-5,
    )
    return replace(
        outcome,
        summary=f"repaired on {taught} triggered and {len(kept) - taught} clean prompts toward the "
        f"model's own answers, {outcome.summary}",
    )


METHODS.register("repair")(
    Method(
        about="a few steps toward the model's own answers, after a cut (--after guided)",
        source="Loratomy; self-distillation after arXiv 1503.02531",
        config=RepairConfig,
        run=repair,
        kind=TRAINED,
        needs=(TRIGGER, CLEAN_ROWS, GRADIENTS),
    )
)
