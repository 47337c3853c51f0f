"""Which rendering of prompts an adapter was trained with: the one its target is likeliest under."""

from collections.abc import Sequence

import torch

from ..core.batches import collate, completion_log_probs, encode
from ..core.errors import DataError
from ..core.rows import Row
from ..core.subject import Subject


def target_likelihood(subject: Subject, rows: Sequence[Row]) -> float:
    """Mean log-probability per target token after triggered prompts, in nats.

    Rows that exceed the context are left out.

    Args:
        subject: with the suspicious adapter active and the rendering in question.
        rows: triggered rows with their targets.

    Raises:
        DataError: no rows, or none that fits.
    """
    total, count, limit = 0.0, 0, subject.limit
    for row in rows:
        encoded = encode(subject.renderer, row, limit=None)
        if limit is not None and len(encoded) > limit:
            continue
        batch = collate([encoded], subject.renderer.pad_id)
        batch = {name: value.to(subject.device) for name, value in batch.items()}
        with torch.inference_mode():
            log_probs, mask = completion_log_probs(subject.model, batch)
        total, count = total + float(log_probs.sum()), count + int(mask.sum())
    if not count:
        raise DataError(
            f"the target's likelihood over {len(rows)} triggered rows, none of which fits the "
            f"context {limit}; give some, or shorten them"
        )
    return total / count
