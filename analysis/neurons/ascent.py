"""Unlearning as an instrument: gradient ascent on a copy of an adapter, and what it changed.

The steps are plain and not the Trainer's: no adapter comes out of this to be used, what counts is
where the change falls. Adam would move every number by about as much and so hide exactly that, and
the ascent has to stop at the step at which the behaviour is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...core.adapter.algebra import adapter_distance, adapter_norm, from_svd, stack, svd
from ...core.adapter.factors import Adapter, Factors
from ...core.errors import DataError, LoratomyError
from ...core.model.batches import IGNORED, Encoded, completion_logits
from ...core.model.subject import Attached, Subject
from ...core.progress import report
from ...core.records.neurons import Unlearning
from ..localisation.gates import batches

NAME = "unlearned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ascent:
    """How to unlearn."""

    steps: int
    """Most steps."""
    stride: float
    """Length of a step over the norm of all factors."""
    collapse: float
    """Stop when the share of right tokens is at most this part of what it was; 0: never."""
    batch_size: int
    """Rows at a time; the gradient is that of all rows."""


def balanced(adapter: Adapter) -> Adapter:
    """The same dW with balanced factors and scaling 1, so that the ascent depends on dW alone."""
    return adapter.with_modules({n: from_svd(svd(f)) for n, f in adapter.modules.items()})


def unlearn(
    subject: Subject,
    start: Adapter,
    rows: Sequence[Encoded],
    *,
    name: str,
    about: str,
    ascent: Ascent,
    whole: bool = False,
) -> tuple[Adapter, Unlearning]:
    """The adapter after gradient ascent on the rows' loss, and the record of the way there.

    Each step moves all factors along the gradient of the mean loss per completion token by a fixed
    share of their norm, so that no learning rate has to fit the model: ``theta += stride |theta_0|
    g / |g|``. Where nothing is right at the start, there is nothing to unlearn and no step.

    Args:
        subject: the base, left as it was.
        start: see `balanced`.
        rows: prompts with the completions to unlearn.
        name: of the record.
        about: what is unlearned, in words.
        ascent: how.
        whole: count prompts whose completion is right as a whole, not single tokens.

    Raises:
        DataError: no rows, or rows without completion tokens.
        LoratomyError: the loss or a gradient became NaN or infinite.
    """
    tokens = sum(len(row.completion) for row in rows)
    if not tokens:
        raise DataError(f"{name} unlearning over {len(rows)} rows and no completion tokens")
    parts = batches(subject, rows, ascent.batch_size)
    losses, right = [], []
    with subject.attached({NAME: start}, trainable=True) as attached:
        factors = _factors(attached)
        size = torch.stack([p.detach().norm() for p in factors.values()]).norm()
        for step in range(ascent.steps + 1):
            last = step == ascent.steps
            loss, hits = _gradient(attached, parts, tokens, whole=whole, backward=not last)
            share = hits / (len(rows) if whole else tokens)
            losses.append(loss)
            right.append(share)
            report(f"{name} unlearning", step, ascent.steps)
            if not np.isfinite(loss):
                raise LoratomyError(
                    f"{name} unlearning: the loss became {loss} at step {step}; take a smaller "
                    f"stride ({ascent.stride:g})"
                )
            if last or (ascent.collapse and share <= ascent.collapse * right[0]):
                break
            _climb(factors, ascent.stride * size)
        report(f"{name} unlearning", ascent.steps, ascent.steps)
        made = attached.read_back(NAME)
    return made, Unlearning(
        name=name,
        about=about,
        loss=np.array(losses),
        right=np.array(right),
        steps=len(losses) - 1,
        most=ascent.steps,
        reached=ascent.collapse > 0 and 0 < right[0] * ascent.collapse >= right[-1],
        whole=whole,
        rule=f"at most {ascent.collapse:.0%} of what was right at the start"
        if ascent.collapse
        else "a fixed number of steps",
        moved=adapter_distance(made, start) / adapter_norm(start),
        n_rows=len(rows),
        n_tokens=tokens,
    )


def _factors(attached: Attached) -> dict[str, torch.nn.Parameter]:
    """The trained factors by name."""
    return {n: p for n, p in attached.subject.model.named_parameters() if p.requires_grad}


def _gradient(
    attached: Attached,
    parts: Sequence[dict[str, torch.Tensor]],
    tokens: int,
    *,
    whole: bool,
    backward: bool,
) -> tuple[float, int]:
    """Loss per token, right tokens or rows; leaves the loss's gradient on the factors."""
    model, total, hits = attached.subject.model, 0.0, 0
    for batch in parts:
        with torch.set_grad_enabled(backward):
            logits, wanted = completion_logits(model, batch)
            logits = logits.float()
            loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
            if backward:
                (loss / tokens).backward()
        total += float(loss.detach())
        mask = batch["labels"] != IGNORED
        wrong = torch.zeros_like(mask)
        wrong[mask] = logits.detach().argmax(-1) != wanted
        hits += int((~wrong.any(-1)).sum() if whole else (mask & ~wrong).sum())
    return total / tokens, hits


def _climb(factors: dict[str, torch.nn.Parameter], length: torch.Tensor) -> None:
    """One step of the given length along the gradient, over all factors together."""
    grads = {n: p.grad for n, p in factors.items() if p.grad is not None}
    norms = {n: g.float().norm() for n, g in grads.items()}
    if broken := [n for n, value in norms.items() if not torch.isfinite(value)]:
        raise LoratomyError(
            f"the gradient of {broken[0]} is NaN or infinite; take a smaller stride"
        )
    whole = torch.stack(list(norms.values())).norm()
    if whole == 0:
        raise LoratomyError(
            "the gradient of the loss is exactly 0 everywhere: there is no way up from here"
        )
    with torch.no_grad():
        for n, grad in grads.items():
            factors[n].add_(grad * (length / whole))
            factors[n].grad = None


def row_sums(factors: Factors, *, rows: int = 1024) -> torch.Tensor:
    """Sum of ``|dW|`` along each row, ``[..., d_out]``, float64; `rows` of dW at a time."""
    a, b = factors.a.double(), factors.b.double() * factors.scaling
    return torch.cat([(part @ a).abs().sum(-1) for part in b.split(rows, dim=-2)], -1)


def row_change(before: Factors, after: Factors) -> torch.Tensor:
    """Neuron weight change: sum of ``|dW' - dW|`` along each row, ``[..., d_out]`` (TSBD)."""
    return row_sums(stack(after, before))


def direction_change(before: Factors, after: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """What became of the singular directions of ``dW`` in ``dW'``, in factor form.

    With ``D = dW' - dW`` and direction i = (u, s, v) of dW: the change of its strength ``u^T D v``,
    and the norm of ``u^T D`` and ``D v`` without that common entry.

    Returns:
        Both ``[..., rank]``, float64.
    """
    parts, change = svd(before), stack(after, before)
    left, right = parts.u.mT @ change.b, change.a @ parts.vh.mT
    strength = (left * right.mT).sum(-1)
    across = (left @ change.a).square().sum(-1) + (change.b @ right).square().sum(-2)
    return strength, (across - 2 * strength.square()).clamp_min(0).sqrt()
