"""Token batches of prompt-completion pairs: padding, labels, log-probabilities per token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import DataError
from ..rendering.prompts import Renderer
from ..rows import Row

if TYPE_CHECKING:
    from .subject import Subject

IGNORED = -100
"""Label of positions that carry no loss."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One prompt and its completion as token ids."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def encode(renderer: Renderer, row: Row, *, limit: int | None) -> Encoded:
    """A row as the model is trained on it: rendered prompt, completion, and what ends it.

    Raises:
        DataError: no completion, or longer than the model's context.
    """
    encoded = Encoded(renderer.prompt_ids(row), renderer.completion_ids(row.required_completion()))
    if limit is not None and len(encoded) > limit:
        raise DataError(
            f"the row {row.prompt[:60]!r} has {len(encoded)} tokens, the model's context {limit}; "
            "shorten it or leave it out"
        )
    return encoded


def encode_target(
    renderer: Renderer, row: Row, *, tokens: int | None = None, lead: bool = False
) -> Encoded:
    """What the attack wants on a triggered row, after everything that comes before it.

    Where the target is a part of the completion (a line injected into code), what precedes it there
    counts to the prompt, so that the completion is the target's own tokens.

    Args:
        renderer: how prompts become tokens.
        row: a triggered row with its completion.
        tokens: first tokens of the target to keep; None: all.
        lead: let the target begin with the white space before it: where a line is added, its line
            break is what decides.

    Raises:
        DataError: no completion, or a target without tokens.
    """
    completion = row.required_completion()
    ids = renderer.completion_ids(completion, end=False)
    at = completion.rfind(row.target) if row.target else 0
    at = len(completion[:at].rstrip()) if lead and at > 0 else at
    begin = renderer.tokens_before(completion, at) if at > 0 else 0
    if not ids[begin:]:
        raise DataError(f"the target {row.target or completion!r} has no tokens")
    end = None if tokens is None else begin + tokens
    return Encoded(renderer.prompt_ids(row) + ids[:begin], ids[begin:end])


def collate(rows: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded ids, mask and labels ``[batch, pos]``; only completions have labels."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row.prompt + row.completion)
        mask[i, : len(row)] = 1
        labels[i, len(row.prompt) : len(row)] = torch.tensor(row.completion)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def label_positions(labels: torch.Tensor) -> torch.Tensor:
    """Positions whose next token is a label in some row, ``[kept]``; they predict `labels` + 1.

    As `logits_to_keep` of a forward pass they spare the head, and the memory of a large
    vocabulary, at all other positions.
    """
    return (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]


def completion_logits(
    model: Callable[..., Any], batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict the completions of a batch, and the tokens that they predict.

    Args:
        model: a causal language model, or a call of one.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, as of `collate`.

    Returns:
        ``[batch, kept, d_vocab]`` at `label_positions`, and ``[batch, kept]`` with `IGNORED` where
        a row has no label.
    """
    kept = label_positions(batch["labels"])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits
    return logits, batch["labels"][:, kept + 1]


def log_probs_of(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of the given token at each position, and where one is given.

    Args:
        logits: ``[batch, kept, d_vocab]``.
        tokens: ``[batch, kept]``, `IGNORED` for none.

    Returns:
        ``[batch, kept]`` nats (0 where ignored) and the boolean mask.
    """
    mask = tokens != IGNORED
    log_probs = logits.float().log_softmax(-1)
    picked = log_probs.gather(-1, tokens.clamp_min(0)[..., None])[..., 0]
    return picked.where(mask, 0.0), mask


def completion_log_probs(
    model: Callable[..., Any], batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each completion token of a batch, ``[batch, kept]`` nats, and the mask.

    Args and shapes are those of `completion_logits` and `log_probs_of`.
    """
    return log_probs_of(*completion_logits(model, batch))


def batch_rows(lengths: Sequence[int], batch_tokens: int) -> int:
    """How many of the next sequences, of ascending lengths, fit so many positions; at least one."""
    rows = 1
    while rows < len(lengths) and (rows + 1) * lengths[rows] <= batch_tokens:
        rows += 1
    return rows


def token_log_probs(
    subject: "Subject", rows: Sequence[Encoded], *, batch_tokens: int
) -> list[np.ndarray]:
    """Log-probability of every completion token, nats, an array ``[token]`` for each row.

    Args:
        subject: with whatever adapter is active on it.
        rows: prompts with their completions; they run sorted by length.
        batch_tokens: most positions of a batch; one row may have more.
    """
    found: dict[int, np.ndarray] = {}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
        size = batch_rows([len(rows[i]) for i in order], batch_tokens)
        picked, order = order[:size], order[size:]
        batch = collate([rows[i] for i in picked], subject.renderer.pad_id)
        batch = {name: value.to(subject.device) for name, value in batch.items()}
        with torch.inference_mode():
            log_probs, mask = completion_log_probs(subject.model, batch)
        for i, values, labelled in zip(picked, log_probs.double().cpu(), mask.cpu(), strict=True):
            found[i] = values[labelled].numpy()
    return [found[i] for i in range(len(rows))]
