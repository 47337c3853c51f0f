"""Greedy answers of a subject, in batches."""

from collections.abc import Sequence
from typing import Any

import torch

from ..core.errors import LoratomyError
from ..core.progress import report
from ..core.subject import Subject


def stop_ids(subject: Subject) -> list[int]:
    """The ids that end an answer: the tokenizer's and those of the generation config."""
    listed = subject.model.generation_config.eos_token_id
    more = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return sorted({subject.renderer.eos_id, *more})


def generate(
    subject: Subject,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    label: str = "generating",
) -> list[list[int]]:
    """Greedy continuations of tokenised prompts, without the ids that end them.

    Prompts run sorted by length, padded on the left; an answer does not depend on its batch beyond
    rounding. When a GPU runs out of memory the batch is halved.

    Args:
        subject: with whatever adapter is active on it.
        prompts: token ids of each rendered prompt.
        max_new_tokens: longest answer.
        batch_size: prompts at a time.
        label: for the progress bar.

    Raises:
        LoratomyError: out of memory with a single prompt.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    stops, done = stop_ids(subject), 0
    while done < len(order):
        picked = order[done : done + batch_size]
        try:
            batch = [prompts[i] for i in picked]
            rows = _batch(subject, batch, max_new_tokens, stops)
        except torch.cuda.OutOfMemoryError as error:
            if batch_size == 1:
                raise LoratomyError(
                    f"out of GPU memory with one prompt of {len(prompts[picked[0]])} tokens; "
                    "lower --max-new-tokens or use a smaller dtype"
                ) from error
            torch.cuda.empty_cache()
            batch_size //= 2
            continue
        for i, row in zip(picked, rows, strict=True):
            answers[i] = row
        done += len(picked)
        report(label, done, len(order))
    return answers


def _batch(
    subject: Subject, prompts: list[list[int]], max_new_tokens: int, stops: list[int]
) -> list[list[int]]:
    width = max(len(p) for p in prompts)
    pad = subject.renderer.pad_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=subject.device)
    mask = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=subject.device
    )
    model: Any = subject.model
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=pad,
            eos_token_id=stops,
        )
    rows = []
    for row in out[:, width:].tolist():
        end = next((k for k, token in enumerate(row) if token in stops), len(row))
        rows.append(row[:end])
    return rows
