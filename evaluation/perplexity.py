"""Perplexity of reference completions, per token."""

import math
from collections.abc import Sequence

import numpy as np

from ..core.errors import DataError
from ..core.model.batches import encode, token_log_probs
from ..core.model.subject import Subject
from ..core.rows import Row


def completion_losses(
    subject: Subject, rows: Sequence[Row], *, batch_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-probability of each row's completion, nats ``[row]``, and its tokens ``[row]``.

    The token that ends the completion counts. A probability of 0 gives infinity.

    Args:
        subject: with whatever adapter is active on it.
        rows: prompts with reference completions; too long ones are an error.
        batch_tokens: most positions at a time.

    Raises:
        DataError: no rows, or logits that are not numbers.
    """
    if not rows:
        raise DataError("perplexity over no rows; give clean rows with completions")
    encoded = [encode(subject.renderer, row, limit=subject.limit) for row in rows]
    found = token_log_probs(subject, encoded, batch_tokens=batch_tokens)
    losses, counts = np.array([-row.sum() for row in found]), np.array([len(row) for row in found])
    if np.isnan(losses).any():
        raise DataError("the model's logits are not numbers; its weights or the adapter are broken")
    return losses, counts


def of_losses(losses: np.ndarray, counts: np.ndarray) -> float:
    """exp of the mean loss per token; sum and count are kept apart, so batching does not matter."""
    mean = float(losses.sum()) / int(counts.sum())
    return math.exp(mean) if mean < 700 else math.inf


def perplexity(subject: Subject, rows: Sequence[Row], *, batch_tokens: int) -> tuple[float, int]:
    """exp of the mean negative log-probability per completion token, and how many there were.

    Args and errors are those of `completion_losses`.
    """
    losses, counts = completion_losses(subject, rows, batch_tokens=batch_tokens)
    return of_losses(losses, counts), int(counts.sum())
