"""Negative fine-tuning: keep the trigger, replace the completion by a benign one."""

from functools import partial

import torch
from pydantic import Field

from ..core.batches import collate, encode
from ..core.subject import Attached, packed
from ..training.fitting import TRAINED, Batch, Loss, completion_loss, fit
from ..training.recipe import FitPart
from .method import METHODS, Bench, Config, Method, Outcome
from .rates import scaled_rate


class NegativeConfig(Config):
    """Options of `negative`, defaults as published (2-3 epochs, 1e-4 on a 3B model)."""

    epochs: float = Field(3, gt=0)
    """Passes over the rows."""
    learning_rate: float | None = Field(None, gt=0)
    """None: 1e-4 scaled to the model's width."""
    batch_size: int = Field(8, ge=1)
    """Rows per step."""
    clean_rows: int = Field(100, ge=0)
    """Clean rows mixed in; 0 for none."""
    l2: float = Field(0.0, ge=0)
    """Weight of the squared distance of the factors from where they started."""


def anchored(loss: Loss, weight: float) -> Loss:
    """A loss plus ``weight`` times the squared distance of the factors from their start."""
    start: dict[str, torch.Tensor] = {}

    def total(attached: Attached, batch: Batch) -> torch.Tensor:
        parameters = dict(attached.subject.model.named_parameters())
        if not start:
            found = packed(attached.adapters[TRAINED], TRAINED)
            start.update({n: v.to(parameters[n]) for n, v in found.items()})
        distance = torch.stack([(parameters[n] - v).square().sum() for n, v in start.items()])
        return loss(attached, batch) + weight * distance.sum()

    return total


def negative(bench: Bench, config: NegativeConfig) -> Outcome:
    """Fit the poisoned adapter to benign completions of triggered prompts."""
    subject = bench.subject
    rows = [*bench.negative, *bench.clean_train[: config.clean_rows]]
    encoded = [encode(subject.renderer, row, limit=subject.limit) for row in rows]
    rate = config.learning_rate or scaled_rate(subject)
    loss = completion_loss if config.l2 == 0 else anchored(completion_loss, config.l2)
    adapter, log = fit(
        subject,
        bench.start,
        encoded,
        collator=partial(collate, pad_id=subject.renderer.pad_id),
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
        label="negative fine-tuning",
        loss=loss,
    )
    return Outcome(
        adapter,
        f"fine-tuned on {len(bench.negative)} triggered prompts with benign completions and "
        f"{len(rows) - len(bench.negative)} clean rows, {config.epochs:g} epochs at {rate:.1e}",
        loss_step=log.steps,
        loss=log.loss,
    )


METHODS.register("negative")(
    Method(
        about="negative fine-tuning on triggered prompts with benign completions",
        source="Llama-3.2 LoRA unlearning work (2-3 epochs, 1e-4, optional clean mix and L2)",
        config=NegativeConfig,
        run=negative,
    )
)
