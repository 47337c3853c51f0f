"""How strongly an adapter listens for each token of the vocabulary."""

from dataclasses import dataclass

import numpy as np
import torch

from ...core.adapter.factors import Adapter, kind_of, layer_of
from ...core.errors import AdapterError
from ...core.model.subject import Subject
from ..activations.residuals import Batch
from .gain import DRAWS, Gain
from .inputs import after_lead, attends, internal, known_tokens, stream_inputs

SAMPLE = 4096
"""Tokens behind the mean reading that is taken off; of smaller vocabularies all."""


def listeners(subject: Subject, adapter: Adapter) -> list[str]:
    """The modules by which an adapter takes tokens up, in order.

    Queries, keys and values where it has them: what a token says elsewhere in the prompt goes
    through these. Else all that read the normed residual stream.

    Raises:
        AdapterError: it has neither.
    """
    inside = [n for n in adapter.modules if layer_of(n) >= 0 and not internal(subject, n)]
    found = [n for n in inside if attends(subject, n)] or inside
    if not found:
        raise AdapterError(
            "the adapter changes no module that reads the residual stream (it has "
            f"{', '.join(sorted({kind_of(n) for n in adapter.modules}))}): it listens for no token"
        )
    return found


@dataclass(frozen=True, slots=True)
class Strength:
    """How strongly an adapter prefers each token."""

    values: np.ndarray
    """1 for a random direction, ``[d_vocab]``; NaN for ids without a token."""
    null: float
    """95 % quantile of the largest value over the vocabulary when the directions are random ones
    with the same singular values."""


def listening_strength(
    subject: Subject, adapter: Adapter, *, batch_tokens: int = 8192, seed: int = 0
) -> Strength:
    """How strongly an adapter listens for each token of the vocabulary.

    Every token is put behind the token that all prompts begin with and run through the base. With
    ``x`` what a module reads at its position, less the mean over the vocabulary, and ``e = x /
    |x|``, the strength is ``sum |dW e|^2 / sum (|dW|_F^2 / d_in)`` over the modules of `listeners`:
    the input singular directions weighted by their squared singular values, from 0 to d_in. It
    needs no trigger and does not depend on the sign of any direction.

    Args:
        subject: the base, without adapter.
        adapter: any ranks, scalings, modules; fused experts count on the tokens routed to them.
        batch_tokens: most positions in a forward pass.
        seed: of the random directions of the null.

    Raises:
        AdapterError: it reads no residual stream, or changes nothing in what reads it.
    """
    names = listeners(subject, adapter)
    tokens = known_tokens(subject)
    centre = mean_inputs(subject, names, tokens, batch_tokens=batch_tokens)
    generator = torch.Generator().manual_seed(seed)
    gains = {
        name: Gain(adapter.modules[name], output=False, device=subject.device, generator=generator)
        for name in names
    }
    total = torch.zeros(len(tokens), 1 + DRAWS, dtype=torch.float64)

    def see(name: str, inputs: torch.Tensor, routed: torch.Tensor | None, batch: Batch) -> None:
        away = inputs[:, -1].float() - centre[name]
        unit = away / away.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        total[batch.rows] += (
            gains[name](unit, None if routed is None else routed[:, -1]).double().cpu()
        )

    stream_inputs(
        subject,
        names,
        after_lead(subject, tokens),
        see,
        batch_tokens=batch_tokens,
        label="tokens listened for",
    )
    usual = sum(gain.usual for gain in gains.values())
    return strength_of(subject, tokens, total.numpy(), usual, "reads the residual stream")


def strength_of(
    subject: Subject, tokens: np.ndarray, gains: np.ndarray, usual: float, what: str
) -> Strength:
    """Strengths from summed gains ``[token, 1 + draw]`` and what a random vector gets.

    Raises:
        AdapterError: dW is zero in all that counts.
    """
    if not usual > 0:
        raise AdapterError(f"the adapter changes nothing in what {what}: dW is zero there")
    values = np.full(subject.model.get_input_embeddings().weight.shape[0], np.nan)
    values[tokens] = gains[:, 0] / usual
    return Strength(values, float(np.quantile(gains[:, 1:].max(0) / usual, 0.95)))


def mean_inputs(
    subject: Subject, names: list[str], tokens: np.ndarray, *, batch_tokens: int
) -> dict[str, torch.Tensor]:
    """Mean input of each module over tokens behind the lead, ``[d_in]``.

    Of more than `SAMPLE` tokens an evenly spread part is used.
    """
    tokens = tokens[:: -(-len(tokens) // SAMPLE)]
    sums: dict[str, torch.Tensor] = {}

    def see(name: str, inputs: torch.Tensor, _routed: torch.Tensor | None, _batch: Batch) -> None:
        part = inputs[:, -1].double().sum(0)
        sums[name] = sums[name] + part if name in sums else part

    stream_inputs(
        subject,
        names,
        after_lead(subject, tokens),
        see,
        batch_tokens=batch_tokens,
        label="mean reading",
    )
    return {name: (value / len(tokens)).float() for name, value in sums.items()}
