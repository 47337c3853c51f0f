"""Negative fine-tuning: keep the trigger, replace the completion by a benign one."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from ...analysis.material import Material
from ...core.errors import DataError, LoratomyError
from ...core.model.subject import Attached, packed
from ...core.model.variant import Treated, treated
from ...core.rows import Row
from ...training.loop import TRAINED as FITTED
from ...training.objective import Batch, Objective, completion_objective
from ..method import GRADIENTS, METHODS, TRAINED, TRIGGER, Method, Outcome
from .distill import own_answers
from .fit import FitConfig, trained


class NegativeConfig(FitConfig):
    """Options of `negative`, defaults as published (2-3 epochs, 1e-4 on a 3B model)."""

    completions: Literal["set", "clean", "own", "base"] = "set"
    """Benign completions: the run's negative set, or what the clean adapter, the poisoned one or
    the base answers to the prompt without its trigger."""
    clean_rows: int = Field(100, ge=0)
    """Clean rows mixed in; 0 for none."""
    l2: float = Field(0.0, ge=0)
    """Weight of the squared distance of the factors from where they started."""


def anchored(objective: Objective, weight: float) -> Objective:
    """An objective plus ``weight`` times the squared distance of the factors from their start."""
    start: dict[str, torch.Tensor] = {}

    def sums(attached: Attached, batch: Batch) -> torch.Tensor:
        parameters = dict(attached.subject.model.named_parameters())
        if not start:
            found = packed(attached.adapters[FITTED], FITTED)
            start.update({n: v.to(parameters[n]) for n, v in found.items()})
        distance = torch.stack([(parameters[n] - v).square().sum() for n, v in start.items()])
        return torch.cat([objective.sums(attached, batch), distance.sum()[None]])

    def counts(batch: Batch) -> torch.Tensor:
        counted = objective.counts(batch)
        return torch.cat([counted, counted.new_ones(1)])

    return Objective(sums, counts, (*objective.weights, weight))


def benign_rows(material: Material, completions: str) -> list[Row]:
    """Triggered prompts with benign completions of one kind.

    Raises:
        LoratomyError: completions of a clean adapter, and there is none.
    """
    if completions == "set":
        return list(material.negative)
    if completions == "clean" and material.clean is None:
        raise LoratomyError(
            "completions=clean: the run has no clean adapter; take own, base or set"
        )
    who = {"clean": material.clean, "own": material.poisoned, "base": None}[completions]
    with treated(material.subject, Treated(who)):
        made = own_answers(
            material.subject, material.negative, material.rule, label="benign completions"
        )
    return [row for row in made if row.completion]


def negative(material: Material, config: NegativeConfig) -> Outcome:
    """Fit the poisoned adapter to benign completions of triggered prompts."""
    benign = benign_rows(material, config.completions)
    if not benign:
        raise DataError(
            f"completions={config.completions}: there is no triggered prompt with a benign "
            f"completion to fit on (of {len(material.negative)} in the run's negative set; a run "
            "without a trigger has none)"
        )
    rows = [*benign, *material.clean_rows[: config.clean_rows]]
    objective = completion_objective()
    if config.l2:
        objective = anchored(objective, config.l2)
    outcome = trained(material, rows, config, label="negative fine-tuning", objective=objective)
    return replace(
        outcome,
        summary=f"fine-tuned on {len(benign)} triggered prompts with benign completions and "
        f"{len(rows) - len(benign)} clean rows, {outcome.summary}",
    )


METHODS.register("negative")(
    Method(
        about="negative fine-tuning on triggered prompts with benign completions",
        source="Llama-3.2 LoRA unlearning work (2-3 epochs, 1e-4, optional clean mix and L2)",
        config=NegativeConfig,
        run=negative,
        kind=TRAINED,
        needs=(TRIGGER, GRADIENTS),
    )
)
