"""The refusal subspace of each layer, and the corrections that keep outputs as they are on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...analysis.activations.residuals import Batch, mean_weights, stream
from ...core.adapter.factors import Adapter, Factors
from ...core.errors import DataError, LoratomyError
from ...core.model.hooks import hooks
from ...core.model.subject import Subject
from ...core.rows import read_rows
from ...evaluation.generation import Decoding
from .responses import Answered, answered

DIRECTIONS = 3
"""Singular directions of the centred differences, beside the difference of means."""
RIDGE = 1e-3
"""Of the correction, times the mean of the Gram matrix's diagonal."""


def refusal_subspace(refused: torch.Tensor, complied: torch.Tensor) -> torch.Tensor:
    """Orthonormal basis R of one layer's refusal subspace, ``[d_model, k]``, k at most 4, float64.

    The difference of means and the three strongest singular directions of the centred paired
    differences (arXiv 2610.00348). Directions that are numerically zero are left out.

    Args:
        refused: outputs on refused prompts, ``[pair, d_model]``.
        complied: outputs on complied ones, pair by pair.
    """
    difference = refused.double() - complied.double()
    mean = difference.mean(0)
    _, s, vh = torch.linalg.svd(difference - mean, full_matrices=False)
    size = difference.norm(dim=-1).max()
    spread = vh[:DIRECTIONS][s[:DIRECTIONS] > 1e-6 * size]
    basis = torch.cat([mean[None] / mean.norm().clamp_min(1e-30), spread])
    u, s, _ = torch.linalg.svd(basis.mT, full_matrices=False)
    return u[:, s > 1e-6]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Refused and complied prompts with their answers, and where these differ in every layer."""

    texts: Answered
    """Refused prompts, then the complied ones."""
    before: torch.Tensor
    """Mean outputs of every layer on them before any edit, ``[prompt, layer, d_model]``."""

    @property
    def pairs(self) -> int:
        """Refused prompts, each with a complied one."""
        return len(self.texts.prompts) // 2

    def subspace(self, layer: int) -> torch.Tensor:
        """R of a layer, see `refusal_subspace`."""
        here = self.before[:, layer]
        return refusal_subspace(here[: self.pairs], here[self.pairs :])


def read_refusal(
    subject: Subject,
    refused: str,
    complied: str,
    *,
    pairs: int,
    decoding: Decoding,
    batch_tokens: int,
) -> Refusal:
    """The pairs of two files, run through the model as it is.

    Args:
        subject: with the adapter that is to be edited active.
        refused: JSONL file of refused prompts.
        complied: of as many complied ones, in the same order.
        pairs: most pairs.
        decoding: how long answers are where a row has none.
        batch_tokens: most positions of a batch.

    Raises:
        DataError: a file cannot be read, they differ in length, or an answer has no tokens.
    """
    one, other = (read_rows(Path(path)) for path in (refused, complied))
    if len(one) != len(other):
        raise DataError(
            f"{refused} has {len(one)} rows and {complied} {len(other)}: line n of one is the pair "
            "of line n of the other"
        )
    rows = [*one[:pairs], *other[:pairs]]
    texts = answered(subject, rows, decoding, label="answers to refused and complied")
    means = texts.means(subject, batch_tokens=batch_tokens, label="refused and complied prompts")
    if (empty := np.flatnonzero(np.isnan(means[:, 0, 0]))).size:
        raise DataError(f"the answer to {rows[empty[0]].prompt[:60]!r} has no tokens; give one")
    return Refusal(texts, torch.from_numpy(means).double())


def correctable(subject: Subject, layers: Sequence[int]) -> dict[int, str]:
    """Name of the one weight with which each layer's MLP writes, for the correction.

    Raises:
        LoratomyError: a layer with experts or several such weights.
    """
    family, shapes, found = subject.family, subject.shapes, {}
    for layer in layers:
        names = [f"{family.layers}.{layer}.{path}" for path in family.mlp_out]
        here = [name for name in names if name in shapes]
        if len(here) != 1 or len(shapes[here[0]]) != 2:
            raise LoratomyError(
                f"layer {layer} of {family.model_type} has experts, and the correction that keeps "
                "refusals is for layers with one down_proj; leave out refused and complied"
            )
        found[layer] = here[0]
    return found


def correction(
    inputs: torch.Tensor, gap: torch.Tensor, b: torch.Tensor, kept: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``Q [d_out, k]`` and ``C [k, d_in]``: adding ``Q C`` to a weight closes a gap along R.

    Q is an orthonormal basis of ``(I - b b^T) R``, so that nothing is written along b. C is the
    ridge regression of the coefficients that the gap needs on the weight's inputs, with
    ``1e-3`` times the mean diagonal of ``X^T X``; by the kernel form, ``[prompt, prompt]``.

    Args:
        inputs: X, of the weight, ``[prompt, d_in]``.
        gap: what is missing along R, ``[prompt, k]``.
        b: the backdoor's direction, unit, ``[d_out]``.
        kept: R, ``[d_out, k]``.
    """
    u, s, _ = torch.linalg.svd(kept - b[:, None] * (b @ kept), full_matrices=False)
    q = u[:, s > 1e-6]
    wanted = gap @ torch.linalg.pinv(kept.mT @ q).mT
    gram = inputs @ inputs.mT
    ridge = RIDGE * gram.trace() / inputs.shape[1]
    c = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), wanted)
    return q, c.mT @ inputs


@dataclass(frozen=True, slots=True)
class Corrected:
    """One layer after its correction."""

    factors: Factors
    """Of its down_proj."""
    before: float
    """Root mean square of the gap along R without the correction, over that of the projections."""
    after: float
    """The same with it."""


def corrected(
    subject: Subject,
    adapter: Adapter,
    refusal: Refusal,
    place: tuple[int, str],
    directions: tuple[torch.Tensor, torch.Tensor],
    *,
    batch_tokens: int,
) -> Corrected:
    """A layer's down_proj after what keeps refusal projections of its output, or as it was.

    As it was where the correction does not make the gap smaller: behind a norm of its own
    (Gemma) what a weight adds is not what the layer's output gains.

    Args:
        subject: the base.
        adapter: edited up to this layer.
        refusal: pairs and outputs before any edit.
        place: number of the layer and name of its down_proj.
        directions: b ``[d_model]`` and R ``[d_model, k]`` of the layer.
        batch_tokens: most positions of a batch.
    """
    (layer, name), (b, kept) = place, directions
    wanted = refusal.before[:, layer] @ kept
    size = wanted.square().mean().sqrt()
    inputs, now = _seen(subject, adapter, refusal, place, batch_tokens=batch_tokens)
    gap = wanted - now @ kept
    own = adapter.modules[name]
    config = subject.model.config.get_text_config()
    factor = getattr(config, subject.family.residual_factor or "", 1.0)
    q, c = correction(inputs, gap / factor, b, kept)
    factors = Factors(
        torch.cat([own.a, c.float()], -2),
        torch.cat([own.b, (q / own.scaling).float()], -1),
        own.scaling,
    )
    tried = adapter.with_modules({**adapter.modules, name: factors})
    _, now = _seen(subject, tried, refusal, place, batch_tokens=batch_tokens)
    before, after = (float(g.square().mean().sqrt() / size) for g in (gap, wanted - now @ kept))
    return Corrected(factors, before, after) if after < before else Corrected(own, before, before)


def _seen(
    subject: Subject,
    adapter: Adapter,
    refusal: Refusal,
    place: tuple[int, str],
    *,
    batch_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over responses of a weight's inputs ``[prompt, d_in]`` and of its layer's output."""
    layer, name = place
    texts, count = refusal.texts, len(refusal.texts.prompts)
    whole, places = texts.whole, texts.places(subject)
    inputs = torch.zeros(count, subject.shapes[name][1], dtype=torch.float64)
    outputs = torch.zeros(count, refusal.before.shape[-1], dtype=torch.float64)
    now: list[tuple[Batch, torch.Tensor]] = []

    def means(hidden: torch.Tensor) -> torch.Tensor:
        batch, weights = now[0]
        own = hidden.float().masked_fill(~batch.mask[..., None], 0.0)
        return (weights @ own)[:, 0].double().cpu()

    def see(level: int, hidden: torch.Tensor, batch: Batch) -> None:
        if level == 0:
            now[:] = [(batch, mean_weights(batch, places, 1))]
        elif level == layer + 1:
            outputs[batch.rows] = means(hidden)

    def enter(_module: Any, args: Any) -> None:
        inputs[now[0][0].rows] = means(args[0].view(*now[0][0].ids.shape, -1))

    with subject.attached({"edited": adapter}):
        handle = subject.model.get_submodule(name).register_forward_pre_hook(enter)
        with hooks([handle]):
            stream(subject, whole, see, batch_tokens=batch_tokens, label=f"refusals, layer {layer}")
    return inputs, outputs
