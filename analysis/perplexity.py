"""Perplexity of reference completions, per token."""

import math
from collections.abc import Sequence

import torch

from ..core.batches import collate, encode, token_log_probs
from ..core.errors import DataError
from ..core.rows import Row
from ..core.subject import Subject


def perplexity(subject: Subject, rows: Sequence[Row], *, batch_size: int) -> tuple[float, int]:
    """exp of the mean negative log-probability per completion token, and how many there were.

    Sum and count are kept apart, so that the figure does not depend on the batching. The token
    that ends the completion counts. A probability of 0 gives infinity.

    Args:
        subject: with whatever adapter is active on it.
        rows: prompts with reference completions; too long ones are an error.
        batch_size: rows at a time.

    Raises:
        DataError: no rows, or logits that are not numbers.
    """
    if not rows:
        raise DataError("perplexity over no rows; give clean rows with completions")
    encoded = [encode(subject.renderer, row, limit=subject.limit) for row in rows]
    encoded.sort(key=len)
    total, count = 0.0, 0
    for start in range(0, len(encoded), batch_size):
        batch = collate(encoded[start : start + batch_size], subject.renderer.pad_id)
        batch = {name: value.to(subject.device) for name, value in batch.items()}
        labels = batch.pop("labels")
        with torch.inference_mode():
            logits = subject.model(**batch, use_cache=False).logits
        log_probs, mask = token_log_probs(logits, labels)
        total += float(log_probs.double().sum())
        count += int(mask.sum())
    if math.isnan(total):
        raise DataError("the model's logits are not numbers; its weights or the adapter are broken")
    mean = -total / count
    return (math.exp(mean) if mean < 700 else math.inf), count
