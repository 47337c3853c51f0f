"""What a fit minimises: means whose sums and counts are kept apart.

A step may be split into micro-batches (accumulation) and over processes. Each term of an objective
is a sum over what is counted (tokens, rows) and a count; the step's loss is
``sum_k weight_k * (sum of sums_k) / (sum of counts_k)`` over all its parts, so that accumulating
4 batches of 2 rows is the same as one batch of 8, and so are two processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..core.model.batches import IGNORED, completion_log_probs
from ..core.model.subject import Attached

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss in terms, each a sum over a count."""

    sums: Callable[[Attached, Batch], torch.Tensor]
    """Differentiable sums of each term over one micro-batch, ``[term]``, the trained adapter
    active."""
    counts: Callable[[Batch], torch.Tensor]
    """What each sum of that micro-batch is counted over, ``[term]``; known without the model."""
    weights: tuple[float, ...] = (1.0,)
    """Weight of each term in the loss."""
    splits: bool = True
    """Whether a micro-batch may be computed in parts; not where its gradient steers the loss."""

    def loss(self, attached: Attached, batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        """This micro-batch's part of the step's loss; a term that counts nothing is left out.

        Args:
            attached: with the trained adapter active.
            batch: a micro-batch.
            counts: of the whole step, ``[term]``.
        """
        sums = self.sums(attached, batch)
        weights = torch.tensor(self.weights, device=sums.device, dtype=sums.dtype)
        counted = counts.to(sums.device)
        parts = weights * sums / counted.clamp_min(1).to(sums.dtype)
        return parts.where(counted > 0, torch.zeros_like(parts)).sum()


def completion_nll(attached: Attached, batch: Batch) -> torch.Tensor:
    """Negative log-probability of all completion tokens of a batch, nats."""
    return -completion_log_probs(attached.subject.model, batch)[0].sum()


def completion_tokens(batch: Batch, labels: str = "labels") -> torch.Tensor:
    """How many completion tokens a batch has, a scalar."""
    return (batch[labels][:, 1:] != IGNORED).sum()


def completion_objective() -> Objective:
    """Mean negative log-probability per completion token."""
    return Objective(
        lambda attached, batch: completion_nll(attached, batch)[None],
        lambda batch: completion_tokens(batch)[None],
    )
