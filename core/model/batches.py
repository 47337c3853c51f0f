"""Token batches of prompt-completion pairs: padding, labels, log-probabilities per token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import DataError
from ..rendering.prompts import Renderer
from ..rows import Row
from .hooks import hooks

if TYPE_CHECKING:
    from .subject import Subject

IGNORED = -100
"""Label of positions that carry no loss."""
PADDING = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
"""What stands at positions that nothing sees, see `widened`."""


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


def widened(batch: Mapping[str, torch.Tensor], subject: "Subject") -> dict[str, torch.Tensor]:
    """A batch padded on to the next of eight widths between a power of two and its double.

    These are few and recur. In bfloat16 on a CPU every matrix product is compiled for its shape, so
    that a pass of a new one takes up to twice as long; elsewhere batches stay as they are.

    Args:
        batch: as of `collate`, whatever stands before or beside these names.
        subject: the model that it is for, in the format that it runs in.
    """
    found, limit = dict(batch), subject.limit
    if subject.device.type != "cpu" or subject.model.dtype != torch.bfloat16:
        return found
    for name, value in batch.items():
        fill = next((fill for end, fill in PADDING.items() if name.endswith(end)), None)
        if fill is not None:
            width = value.shape[1]
            step = 1 << max(0, width.bit_length() - 4)
            more = min(-width % step, max(0, (limit or width + step) - width))
            found[name] = torch.nn.functional.pad(value, (0, more), value=fill)
    return found


def completion_logits(
    model: Any, batch: Mapping[str, torch.Tensor], run: Callable[..., Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that predict the completion tokens of a batch, and these tokens.

    The head sees the states that predict a labelled token and no other, so that neither padding nor
    prompts cost the memory of a large vocabulary.

    Args:
        model: a causal language model; its head is called once.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, as of `collate`.
        run: how the model is called instead, e.g. with other weights.

    Returns:
        ``[token, d_vocab]`` and ``[token]``, row after row.
    """
    labels = batch["labels"][:, 1:]
    predicting = labels != IGNORED

    def labelled(_head: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, *more = inputs
        return (states[:, :-1][predicting], *more)

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with hooks([model.get_output_embeddings().register_forward_pre_hook(labelled)]):
        logits = (run or model)(**inputs, use_cache=False).logits
    return logits, labels[predicting]


def log_probs_of(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of the given token at each position, and where one is given.

    Args:
        logits: ``[..., d_vocab]``.
        tokens: ``[...]``, `IGNORED` for none.

    Returns:
        ``[...]`` nats (0 where ignored) and the boolean mask.
    """
    mask = tokens != IGNORED
    log_probs = logits.float().log_softmax(-1)
    picked = log_probs.gather(-1, tokens.clamp_min(0)[..., None])[..., 0]
    return picked.where(mask, 0.0), mask


def completion_log_probs(
    model: Any, batch: Mapping[str, torch.Tensor], run: Callable[..., Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each completion token of a batch, nats, and where there is one.

    Args: those of `completion_logits`.

    Returns:
        ``[batch, pos - 1]``, the token at `pos` + 1 (0 where it has no label), and the mask.
    """
    found, _ = log_probs_of(*completion_logits(model, batch, run))
    mask = batch["labels"][:, 1:] != IGNORED
    return torch.zeros(mask.shape, device=found.device).masked_scatter(mask, found), mask


def batch_rows(lengths: Sequence[int], batch_tokens: int) -> int:
    """How many of the next sequences, of ascending lengths, fit so many positions; at least one."""
    rows = 1
    while rows < len(lengths) and (rows + 1) * lengths[rows] <= batch_tokens:
        rows += 1
    return rows


def length_parts(lengths: Sequence[int], *, fixed: int, most: int) -> list[list[int]]:
    """Rows of like length put together, longest first, so that the least is computed.

    A part costs its rows times its longest row, padding included, and what a pass costs whatever is
    in it; the sum is the least that can be had (before batches are `widened`).

    Args:
        lengths: tokens of each row.
        fixed: what a pass costs whatever is in it, in positions.
        most: positions that fit into memory; one row may have more.

    Returns:
        Numbers of the rows, part by part.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    best = [(0, 0)]
    """For the first so many rows: the least cost, and where their last part begins."""
    for end in range(1, len(order) + 1):
        found = []
        for begin in range(end - 1, -1, -1):
            positions = (end - begin) * lengths[order[begin]]
            if positions > most and end - begin > 1:
                break  # with more rows it is more
            found.append((best[begin][0] + fixed + positions, begin))
        best.append(min(found))
    parts, end = [], len(order)
    while end:
        begin = best[end][1]
        parts.insert(0, order[begin:end])
        end = begin
    return parts


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
