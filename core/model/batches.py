"""Token batches of prompt-completion pairs: padding, labels, and losses counted per token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DataError
from ..rendering.prompts import Renderer
from ..rows import Row

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


def aimed(
    renderer: Renderer, row: Row, *, tokens: int | None = None, lead: bool = False
) -> Encoded:
    """What the attack wants on a triggered row, after everything that comes before it.

    Where the target is a part of the completion (a line injected into code), what precedes it there
    counts to the prompt, so that the target's own tokens are asked for.

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


def completion_log_probs(
    model: Callable[..., Any], batch: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each labelled token of a batch, the head asked for no other position.

    Args:
        model: a causal language model, or a call of one.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, as of `collate`.

    Returns:
        ``[batch, asked]`` nats (0 where a row has no label) and the boolean mask, where asked are
        the positions of `asked_positions`.
    """
    labels = batch["labels"]
    asked = asked_positions(labels)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, use_cache=False, logits_to_keep=asked).logits
    return next_log_probs(logits, labels[:, asked + 1])


def token_log_probs(
    logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each labelled token and which positions those are.

    Args:
        logits: ``[batch, pos, d_vocab]``.
        labels: ``[batch, pos]`` with `IGNORED` where nothing is asked.

    Returns:
        ``[batch, pos - 1]`` nats (0 where ignored) and the boolean mask.
    """
    return next_log_probs(logits[:, :-1], labels[:, 1:])


def asked_positions(labels: torch.Tensor) -> torch.Tensor:
    """Positions of which some row's next token is labelled, ``[asked]``.

    As `logits_to_keep` of a forward pass these spare the head, and the memory of a large
    vocabulary, at all others; they predict ``labels[:, asked + 1]``.
    """
    return (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]


def next_log_probs(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each wanted token and where one is wanted.

    Args:
        logits: ``[batch, asked, d_vocab]``.
        wanted: the tokens that they predict, ``[batch, asked]``, `IGNORED` for none.

    Returns:
        ``[batch, asked]`` nats (0 where ignored) and the boolean mask.
    """
    mask = wanted != IGNORED
    log_probs = logits.float().log_softmax(-1)
    picked = log_probs.gather(-1, wanted.clamp_min(0)[..., None])[..., 0]
    return picked.where(mask, 0.0), mask
