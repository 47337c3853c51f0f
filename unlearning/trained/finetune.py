"""Plain fine-tuning on clean rows: a baseline, and the equal-budget control of trained methods."""

import math
from dataclasses import replace
from typing import Any

from pydantic import Field

from ...analysis.material import Material
from ...core.records.results import FitUsed, Operation
from ..method import CLEAN_ROWS, CONTROL, GRADIENTS, METHODS, TRAINED, Method, Outcome
from .fit import FitConfig, trained, used


class FinetuneConfig(FitConfig):
    """Options of `finetune`."""

    clean_rows: int = Field(100, ge=1)
    """Clean rows to fit to, at most."""


class ControlConfig(FitConfig):
    """Options of `control-finetune`: what the other method spent, see `equal_budget`."""

    rows: int = Field(ge=1)
    """Rows that the other method was fitted to."""
    learning_rate: float = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride]
    """Largest learning rate of the other method."""


def equal_budget(made: Operation | Outcome) -> dict[str, Any] | None:
    """Options of `control-finetune` that spend what a method spent; None where it fitted nothing.

    Args:
        made: the record of an operation, or what the method gave back.
    """
    return None if made.fit is None else control_options(made.fit)


def control_options(spent: FitUsed) -> dict[str, Any]:
    """Options of `control-finetune` for as many steps of as many rows at the same rate."""
    return {
        "rows": spent.rows,
        "epochs": spent.epochs,
        "batch_size": spent.batch_size,
        "accumulate": spent.accumulate,
        "learning_rate": spent.learning_rate,
        "warmup": spent.warmup,
    }


def same_steps(spent: FitUsed, available: int) -> tuple[int, float]:
    """Rows to take and passes over them that make that number of optimiser steps.

    Args:
        spent: what is to be spent.
        available: rows that there are, at least 1.

    Returns:
        That many rows and passes where there are enough; else all rows, in more passes.
    """
    rows = min(spent.rows, available)
    if rows == spent.rows:
        return rows, spent.epochs
    return rows, spent.steps / math.ceil(rows / (spent.batch_size * spent.accumulate))


def finetune(material: Material, config: FinetuneConfig) -> Outcome:
    """Fit the poisoned adapter to clean rows and nothing else."""
    rows = list(material.clean_rows[: config.clean_rows])
    outcome = trained(material, rows, config, label="plain fine-tuning")
    return replace(outcome, summary=f"fine-tuned on {len(rows)} clean rows, {outcome.summary}")


def control_finetune(material: Material, config: ControlConfig) -> Outcome:
    """Fit to clean rows with exactly as many steps, rows per step and rate as another method."""
    spent = used(config.rows, config.settings(material.subject))
    rows, epochs = same_steps(spent, max(1, len(material.clean_rows)))
    given = config.model_copy(update={"epochs": epochs})
    outcome = trained(
        material, material.clean_rows[:rows], given, label="plain fine-tuning, equal budget"
    )
    summary = f"fine-tuned on {rows} clean rows, {outcome.summary}"
    if rows < config.rows:
        summary += (
            f"; {config.rows} rows were asked for: fewer there are, in more passes, so that the "
            f"{spent.steps} steps are the same"
        )
    return replace(outcome, summary=summary)


METHODS.register("finetune")(
    Method(
        about="plain fine-tuning on clean rows",
        source="the usual baseline",
        config=FinetuneConfig,
        run=finetune,
        kind=TRAINED,
        needs=(CLEAN_ROWS, GRADIENTS),
    )
)
METHODS.register("control-finetune")(
    Method(
        about="plain fine-tuning with the rows, steps and rate of a trained method",
        source="equal-budget control",
        config=ControlConfig,
        run=control_finetune,
        kind=CONTROL,
        needs=(CLEAN_ROWS, GRADIENTS),
    )
)
