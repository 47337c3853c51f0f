"""Residuals of many prompts, layer by layer: read by hooks in padded batches, never kept whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...core.adapter.factors import Adapter
from ...core.errors import DataError, LoratomyError
from ...core.model.hooks import first_of, hooks
from ...core.model.subject import Subject
from ...core.progress import tracked
from ..material import Material

Prompts = Sequence[Sequence[int]]
"""Token ids, one list per prompt."""


def adapters_of(material: Material) -> dict[str, Adapter]:
    """The adapters of a case by name, ``clean`` first where there is one."""
    return ({"clean": material.clean} if material.clean else {}) | {"poisoned": material.poisoned}


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts of similar length, padded on the right."""

    rows: list[int]
    """Which prompts they are, ``[batch]``."""
    ids: torch.Tensor
    """Token ids, ``[batch, pos]``."""
    mask: torch.Tensor
    """True on the prompts' own tokens, ``[batch, pos]``."""


See = Callable[[int, torch.Tensor, Batch], None]
"""Called with a level, its residuals ``[batch, pos, d_model]`` and the batch. Level 0 is what
enters the first layer, level l what the l-th layer leaves (resid_post of layer l - 1)."""


def batches(subject: Subject, prompts: Prompts, *, batch_tokens: int) -> list[Batch]:
    """The prompts sorted by length and cut into batches of at most so many positions.

    A prompt that is longer than `batch_tokens` gets a batch of its own.

    Raises:
        DataError: no prompts, a prompt without tokens, or one longer than the model's context.
    """
    if not prompts:
        raise DataError("no prompts to read activations from")
    lengths = [len(prompt) for prompt in prompts]
    if min(lengths) == 0:
        raise DataError(f"prompt {lengths.index(0) + 1} has no tokens")
    if subject.limit is not None and max(lengths) > subject.limit:
        raise DataError(
            f"prompt {lengths.index(max(lengths)) + 1} has {max(lengths)} tokens, the model's "
            f"context {subject.limit}; shorten it or leave it out"
        )
    groups: list[list[int]] = []
    for row in sorted(range(len(prompts)), key=lambda i: lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[row] <= batch_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_padded(subject, prompts, rows) for rows in groups]


def _padded(subject: Subject, prompts: Prompts, rows: list[int]) -> Batch:
    width = max(len(prompts[row]) for row in rows)
    ids = torch.full((len(rows), width), subject.renderer.pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(prompts[row])] = torch.tensor(list(prompts[row]))
        mask[i, : len(prompts[row])] = True
    return Batch(rows, ids.to(subject.device), mask.to(subject.device))


def forward(subject: Subject, batch: Batch) -> torch.Tensor:
    """One pass without gradients or cache; logits of the last column only, ``[batch, d_vocab]``."""
    with torch.inference_mode():
        out = subject.model(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            use_cache=False,
            logits_to_keep=1,
        )
    return out.logits[:, -1]


def stream(subject: Subject, prompts: Prompts, see: See, *, batch_tokens: int, label: str) -> None:
    """Show `see` the residuals of every level, in order, batch by batch.

    Args:
        subject: with the wanted adapter active.
        prompts: token ids.
        see: takes what it needs; the tensors are gone afterwards.
        batch_tokens: most positions of a batch, padding included.
        label: of the progress.

    Raises:
        DataError: as `batches`.
        LoratomyError: a residual is not finite; names the layer.
    """
    parts = batches(subject, prompts, batch_tokens=batch_tokens)
    now: list[Batch] = []

    def shown(level: int, hidden: torch.Tensor) -> None:
        batch = now[-1]
        if not bool(torch.isfinite(hidden[batch.mask]).all()):
            what = f"what layer {level - 1} leaves" if level else "what enters the first layer"
            raise LoratomyError(
                f"{what} is not finite on prompt {batch.rows[_bad(hidden, batch.mask)] + 1}: the "
                f"weights overflow in {subject.dtype}; load with --dtype float32"
            )
        see(level, hidden, batch)

    def enter(_module: Any, args: Any, given: dict[str, Any]) -> None:
        shown(0, args[0] if args else given["hidden_states"])

    def handles() -> Iterator[Any]:
        yield subject.layers[0].register_forward_pre_hook(enter, with_kwargs=True)
        for level, layer in enumerate(subject.layers, 1):
            yield layer.register_forward_hook(
                lambda _m, _i, out, level=level: shown(level, first_of(out))
            )

    with hooks(handles()):
        for batch in tracked(parts, label):
            now[:] = [batch]
            forward(subject, batch)


def _bad(hidden: torch.Tensor, mask: torch.Tensor) -> int:
    """The first row of a batch with a value that is not finite at one of its tokens."""
    broken = (~torch.isfinite(hidden)).any(-1) & mask
    return int(broken.any(-1).nonzero()[0, 0])


def residuals(
    subject: Subject,
    prompts: Prompts,
    places: Sequence[Sequence[Sequence[int]]],
    *,
    batch_tokens: int,
    label: str,
) -> np.ndarray:
    """resid_post of every layer, ``[prompt, layer, place, d_model]`` in float32.

    Args:
        subject: with the wanted adapter active.
        prompts: token ids.
        places: ``[prompt][place]`` -> the positions whose mean is taken; NaN comes back where
            there are none.
        batch_tokens: most positions of a batch.
        label: of the progress.

    Raises:
        DataError: no prompts, or a position outside its prompt.
        LoratomyError: a residual is not finite.
    """
    width = len(places[0]) if places else 0
    for row, (prompt, spots) in enumerate(zip(prompts, places, strict=True), 1):
        outside = [p for spot in spots for p in spot if not 0 <= p < len(prompt)]
        if outside or len(spots) != width:
            raise DataError(f"prompt {row} of {len(prompt)} tokens cannot be read at {list(spots)}")
    d_model = int(subject.model.get_input_embeddings().weight.shape[1])
    out = np.full((len(prompts), len(subject.layers), width, d_model), np.nan, np.float32)

    averages: list[torch.Tensor] = []

    def see(level: int, hidden: torch.Tensor, batch: Batch) -> None:
        if level == 0:
            averages[:] = [mean_weights(batch, places, width)]
            return
        values = averages[0] @ hidden.float().masked_fill(~batch.mask[..., None], 0.0)
        out[batch.rows, level - 1] = values.cpu().numpy()

    stream(subject, prompts, see, batch_tokens=batch_tokens, label=label)
    return out


def mean_weights(
    batch: Batch, places: Sequence[Sequence[Sequence[int]]], width: int
) -> torch.Tensor:
    """Weights that average over each place's positions, ``[batch, place, pos]``; NaN for none."""
    weights = torch.zeros(len(batch.rows), width, batch.ids.shape[1])
    for i, row in enumerate(batch.rows):
        for place, spot in enumerate(places[row]):
            if spot:
                weights[i, place, list(spot)] = 1 / len(spot)
            else:
                weights[i, place] = torch.nan
    return weights.to(batch.ids.device)
