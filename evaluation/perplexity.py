"""Perplexity of reference completions, per token."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..core.errors import DataError
from ..core.model.batches import collate, completion_log_probs, encode
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
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i]))
    losses, counts = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.int64)
    done = 0
    while done < len(order):
        size = 1
        while done + size < len(order) and (size + 1) * len(encoded[order[done + size]]) <= max(
            batch_tokens, 1
        ):
            size += 1
        picked = order[done : done + size]
        batch = collate([encoded[i] for i in picked], subject.renderer.pad_id)
        batch = {name: value.to(subject.device) for name, value in batch.items()}
        with torch.inference_mode():
            log_probs, mask = completion_log_probs(subject.model, batch)
        losses[picked] = -log_probs.double().sum(-1).cpu().numpy()
        counts[picked] = mask.sum(-1).cpu().numpy()
        done += size
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
