"""What all trained methods share: the options of a fit, and the fit on rows."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import Field

from ...analysis.material import Material
from ...core.adapter.factors import Adapter
from ...core.config import Config
from ...core.model.batches import collate, encode
from ...core.model.subject import Subject
from ...core.records.results import FitUsed
from ...core.rows import Row
from ...training.fitting import fit
from ...training.loop import steps_of
from ...training.objective import Batch, Objective, completion_objective
from ...training.recipe import FitPart
from ..method import Outcome

REFERENCE_WIDTH = 3072
"""d_model of Llama-3.2-3B, for which the published 1e-4 was chosen."""


def scaled_rate(subject: Subject, rate: float = 1e-4) -> float:
    """A published learning rate carried over to this model's width.

    Adam's rate goes as 1 / width (muP, Yang et al. 2022, arXiv 2203.03466, table 3).
    """
    return rate * REFERENCE_WIDTH / int(subject.model.config.get_text_config().hidden_size)


class FitConfig(Config):
    """Options of every trained method; rate and steps mean the same for all."""

    epochs: float = Field(3, gt=0)
    """Passes over the rows."""
    learning_rate: float | None = Field(None, gt=0)
    """None: the published 1e-4 scaled to the model's width."""
    batch_size: int = Field(8, ge=1)
    """Rows per step, shared by the processes."""
    accumulate: int = Field(1, ge=1)
    """Batches accumulated for one step."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the rate rises; then it falls as a cosine."""

    def settings(self, subject: Subject, *, published: float = 1e-4) -> FitPart:
        """The settings of the one fitting loop, the rate scaled where none is given."""
        return FitPart(
            epochs=self.epochs,
            learning_rate=self.learning_rate or scaled_rate(subject, published),
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            evaluations=0,
            eval_rows=1,
            warmup=self.warmup,
            weight_decay=0,
        )


def used(rows: int, settings: FitPart) -> FitUsed:
    """What a fit on so many rows with these settings spends, for `Outcome.fit`."""
    return FitUsed(
        rows=rows,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        steps=steps_of(rows, settings),
    )


def trained(
    material: Material,
    rows: Sequence[Row],
    config: FitConfig,
    *,
    label: str,
    objective: Objective | None = None,
    start: Adapter | None = None,
    published: float = 1e-4,
) -> Outcome:
    """The outcome of fitting the adapter to operate on to the completions of rows.

    Args:
        material: what the method may look at.
        rows: prompts with completions.
        config: how to fit.
        label: for progress and trackers.
        objective: what is minimised; None: mean loss per completion token.
        start: instead of the adapter to operate on.
        published: the rate on a model of `REFERENCE_WIDTH` where the config gives none.
    """
    renderer, limit = material.subject.renderer, material.subject.limit
    return trained_on(
        material,
        [encode(renderer, row, limit=limit) for row in rows],
        config,
        collator=partial(collate, pad_id=renderer.pad_id),
        label=label,
        objective=objective or completion_objective(),
        start=start,
        published=published,
    )


def trained_on(
    material: Material,
    items: Sequence[Any],
    config: FitConfig,
    *,
    collator: Callable[[Sequence[Any]], Batch],
    label: str,
    objective: Objective,
    start: Adapter | None = None,
    others: dict[str, Adapter] | None = None,
    published: float = 1e-4,
) -> Outcome:
    """The outcome of fitting the adapter to operate on to items of a method's own kind.

    Args:
        material: what the method may look at.
        items: one per row, whatever `collator` turns into batches.
        config: how to fit.
        collator: a list of items to a batch of tensors.
        label: for progress and trackers.
        objective: what is minimised.
        start: instead of the adapter to operate on.
        others: further adapters to attach, e.g. a frozen teacher.
        published: the rate on a model of `REFERENCE_WIDTH` where the config gives none.
    """
    settings = config.settings(material.subject, published=published)
    adapter, log = fit(
        material.subject,
        material.start if start is None else start,
        items,
        collator=collator,
        settings=settings,
        seed=material.seed,
        work=material.work,
        label=label,
        objective=objective,
        others=others,
        tracking=material.tracking,
    )
    spent = used(len(items), settings)
    return Outcome(
        adapter,
        f"{config.epochs:g} epochs ({spent.steps} steps) at {settings.learning_rate:.1e}",
        fit=spent,
        loss_step=log.steps,
        loss=log.loss,
        earlier_seconds=log.earlier_seconds,
    )
