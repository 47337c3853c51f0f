"""What ascent and NPO share: triggered rows to forget among clean rows to retain."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field

from ...analysis.material import Material
from ...core.errors import DataError
from ...core.model.batches import Encoded, collate, completion_log_probs, encode
from ...core.model.subject import Attached
from ...training.objective import Batch, completion_tokens
from .fit import FitConfig


class ForgetConfig(FitConfig):
    """Options of the methods that push the target's probability down."""

    triggered_rows: int = Field(100, ge=1)
    """Triggered rows to forget, at most."""
    clean_rows: int = Field(100, ge=1)
    """Clean rows to retain, at most."""
    forget: float = Field(1.0, gt=0)
    """Weight of the forgetting term."""
    retain: float = Field(1.0, ge=0)
    """Weight of the mean loss per completion token of clean rows."""


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a fit that forgets."""

    row: Encoded
    """Prompt and completion; the attack's target on triggered rows."""
    forgotten: bool
    """Whether it is to be forgotten."""
    reference: float = 0.0
    """Log-probability of the completion with the reference model, nats; where it is needed."""


def items_of(material: Material, config: ForgetConfig) -> list[Item]:
    """Triggered rows with their targets and clean rows, each once.

    Raises:
        DataError: no row to forget.
    """
    renderer, limit = material.subject.renderer, material.subject.limit
    triggered = [row for row in material.triggered if row.completion][: config.triggered_rows]
    if not triggered:
        raise DataError("no triggered row has the attack's target: nothing to forget")
    clean = material.clean_rows[: config.clean_rows]
    return [
        Item(encode(renderer, row, limit=limit), forgotten)
        for rows, forgotten in ((triggered, True), (clean, False))
        for row in rows
    ]


def item_batch(items: Sequence[Item], pad_id: int) -> Batch:
    """Ids, mask and labels ``[batch, pos]``, ``forgotten`` and ``reference`` ``[batch]``."""
    return collate([item.row for item in items], pad_id) | {
        "forgotten": torch.tensor([item.forgotten for item in items]),
        "reference": torch.tensor([item.reference for item in items]),
    }


def token_losses(attached: Attached, batch: Batch) -> torch.Tensor:
    """Negative log-probability of each completion token, ``[batch, kept]`` nats, 0 elsewhere."""
    return -completion_log_probs(attached.subject.model, batch)[0]


def retained_tokens(batch: Batch) -> torch.Tensor:
    """How many completion tokens the clean rows of a batch have, a scalar."""
    return completion_tokens({"labels": batch["labels"][~batch["forgotten"]]})
