"""Repair: a few steps on what is left, toward the model's own answers."""

from functools import partial

import torch
from pydantic import Field

from ..core.subject import Attached
from ..training.fitting import fit
from ..training.recipe import FitPart
from .distill import (
    Batch,
    completion_logits,
    divergence,
    inputs_of,
    lesson_batch,
    lessons,
    own_answers,
)
from .method import METHODS, Bench, Config, Method, Outcome
from .rates import scaled_rate

TEACHER = "teacher"


class RepairConfig(Config):
    """Options of `repair`."""

    epochs: float = Field(4, gt=0)
    """Passes over the rows."""
    learning_rate: float | None = Field(None, gt=0)
    """None: 5e-5 scaled to the model's width, gentler than fine-tuning from further off."""
    batch_size: int = Field(16, ge=1)
    """Rows per step."""
    triggered_rows: int = Field(100, ge=1)
    """Triggered prompts, at most."""
    clean_rows: int = Field(200, ge=1)
    """Clean prompts, at most."""


def repair_loss(attached: Attached, batch: Batch) -> torch.Tensor:
    """Mean divergence per token from the poisoned adapter's answers without the trigger."""
    with attached.using(TEACHER), torch.no_grad():
        teacher = attached.subject.model(**inputs_of(batch, "teacher_"), use_cache=False).logits
    student = attached.subject.model(**inputs_of(batch), use_cache=False).logits
    return divergence(
        completion_logits(student, batch["labels"]),
        completion_logits(teacher, batch["teacher_labels"]),
    ).mean()


def repair(bench: Bench, config: RepairConfig) -> Outcome:
    """Fit the remaining directions to the model's own distribution.

    On a triggered prompt the teacher is the poisoned adapter on the same prompt without trigger,
    on a clean prompt the poisoned adapter itself (self-distillation, Hinton et al. 2015, arXiv
    1503.02531). Directions that were cut have no gradient and stay cut.
    """
    subject = bench.subject
    bad = list(bench.poison_train[: config.triggered_rows])
    good = list(bench.clean_train[: config.clean_rows])
    with subject.attached({"own": bench.poisoned}):
        natural = own_answers(subject, bad, bench.rule, label="own answers")
    kept, made = lessons(subject.renderer, [*natural, *good], limit=subject.limit)
    taught = sum(row.triggered for row in kept)
    rate = config.learning_rate or scaled_rate(subject, 5e-5)
    adapter, log = fit(
        subject,
        bench.start,
        made,
        collator=partial(lesson_batch, pad_id=subject.renderer.pad_id),
        settings=FitPart(
            epochs=config.epochs,
            learning_rate=rate,
            batch_size=config.batch_size,
            accumulate=1,
            evaluations=0,
            eval_rows=1,
            warmup=0.1,
            weight_decay=0,
        ),
        seed=bench.seed,
        work=bench.work,
        label="repair",
        loss=repair_loss,
        others={TEACHER: bench.poisoned},
    )
    return Outcome(
        adapter,
        f"repaired on {taught} triggered and {len(kept) - taught} clean prompts toward the model's "
        f"own answers, {config.epochs:g} epochs at {rate:.1e}",
        loss_step=log.steps,
        loss=log.loss,
    )


METHODS.register("repair")(
    Method(
        about="a few steps toward the model's own answers, after a cut (--after guided)",
        source="Loratomy; self-distillation after arXiv 1503.02531",
        config=RepairConfig,
        run=repair,
    )
)
