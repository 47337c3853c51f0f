"""An adapter in the directions that tell triggered from clean prompts apart.

Singular directions of dW are those of its size, not of what it reads: a trigger is spread over
many of them, and each also serves clean prompts. In the rank space of a module, ``z = A x``, let C
be the second moment of z on clean tokens and T that on the tokens that decide the target. The
generalised eigenvectors ``T w = lambda C w`` (Fisher 1936; common spatial patterns, Koles 1991)
with ``w_i^T C w_j = delta_ij`` are read-outs of unit variance on clean prompts, uncorrelated there,
and the first carries most of the trigger. Since ``sum_i C w_i w_i^T = I``,

    dW = scaling * sum_i (B C w_i) (w_i^T A),

so that cutting direction i removes the read-out i with what is written from it, at the least clean
cost that removing this read-out can have.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ...analysis.localisation.gates import (
    GATED,
    POSITIONS,
    WITH_GRADIENTS,
    Directions,
    GatedModel,
    batches,
    numbered,
)
from ...core.adapter.factors import Factors
from ...core.adapter.targets import is_embedding
from ...core.model.batches import Encoded, completion_log_probs
from ...core.model.hooks import hooks
from ...core.progress import report


def discriminant(
    gated: GatedModel,
    triggered: Sequence[Encoded],
    clean: Sequence[Encoded],
    *,
    batch_size: int,
    shrinkage: float = 0.01,
) -> Directions:
    """The same dW in trigger-discriminating directions, the most discriminating first.

    Tokens of the triggered prompts count by the squared gradient of the target's log-probability in
    z, so that neither the trigger's place nor its words are needed. Fused experts have no rank
    space of their own per token, embeddings read no activations: both stay in their singular
    directions. The head counts where it predicts a completion's tokens, and nowhere else.

    Args:
        gated: the model with gates, its adapter in any form.
        triggered: triggered prompts with the target's first tokens as completion.
        clean: clean prompts with completions.
        batch_size: rows at a time.
        shrinkage: share of the mean variance that is added to the clean moments, which few tokens
            would otherwise leave singular.
    """
    towards = moments(gated, triggered, batch_size=batch_size, weighted=True)
    usual = moments(gated, clean, batch_size=batch_size, weighted=False)
    modules = {}
    for name, f in gated.directions.adapter.modules.items():
        modules[name] = f
        if name in usual:
            modules[name] = _rebased(f, towards[name], usual[name], shrinkage)
    return numbered(gated.directions.adapter.with_modules(modules))


def _rebased(f: Factors, towards: torch.Tensor, usual: torch.Tensor, shrinkage: float) -> Factors:
    """One module in discriminant form, moments ``[rank, rank]`` float64."""
    rank = len(usual)
    floor = shrinkage * usual.trace() / rank + 1e-12 * (1 + towards.trace())
    usual = usual + floor * torch.eye(rank, dtype=usual.dtype)
    inverse = torch.linalg.inv(torch.linalg.cholesky(usual))
    _, vectors = torch.linalg.eigh(inverse @ towards @ inverse.mT)
    w = inverse.mT @ vectors.flip(-1)
    a, b = w.mT @ f.a.double(), f.b.double() @ usual @ w
    size = a.norm(dim=-1) * b.norm(dim=-2)
    live = size > 1e-7 * size.max().clamp_min(1e-30)  # what cancels is rounding, no direction
    balance = (b.norm(dim=-2) / a.norm(dim=-1).clamp_min(1e-30)).clamp_min(1e-30).sqrt()
    a, b = a * (live * balance)[:, None], b * (live / balance)
    return Factors(a.float(), b.float(), f.scaling)


def moments(
    gated: GatedModel, rows: Sequence[Encoded], *, batch_size: int, weighted: bool
) -> dict[str, torch.Tensor]:
    """Second moments of ``z = A x`` over a batch's real tokens, module -> ``[rank, rank]``.

    Args:
        gated: the model with gates.
        rows: prompts with completions.
        batch_size: rows at a time.
        weighted: count each token by the squared gradient of the completions' log-probability in
            z, instead of all alike.
    """
    seen: dict[str, torch.Tensor] = {}
    handles = (
        module.register_forward_hook(_keeper(seen, name, weighted))
        for name, module in _rank_modules(gated).items()
    )
    head = gated.subject.family.head
    total: dict[str, torch.Tensor] = {}
    weight: dict[str, torch.Tensor] = {}
    positions = WITH_GRADIENTS if weighted else POSITIONS
    parts = batches(gated.subject, rows, batch_size, positions=positions)
    with hooks(handles):
        for done, batch in enumerate(parts, 1):
            with torch.set_grad_enabled(weighted):
                log_probs, _ = completion_log_probs(gated.subject.model, batch)
                if weighted:
                    log_probs.sum().backward()
            for name, z in seen.items():
                real = batch["attention_mask"].bool()
                if z.dim() == 2:  # some blocks see a list of tokens, the head the predicting ones
                    real = real.new_ones(len(z)) if name == head else real.flatten()
                values = z.detach()[real].double().cpu()
                counts = torch.ones(len(values), dtype=torch.float64)
                if weighted:
                    slope = torch.zeros_like(z) if z.grad is None else z.grad
                    counts = slope[real].double().cpu().square().sum(-1)
                moment = (values * counts[:, None]).mT @ values
                total[name] = total.get(name, torch.zeros_like(moment)) + moment
                weight[name] = weight.get(name, counts.new_zeros(())) + counts.sum()
            seen.clear()
            report("what modules read", done, len(parts))
    return {n: m / weight[n].clamp_min(1e-300) for n, m in total.items()}


def _rank_modules(gated: GatedModel) -> dict[str, Any]:
    """Module name -> the module whose output is ``A x``; fused experts, embeddings have none."""
    model = gated.subject.model
    return {
        name: model.get_submodule(name).lora_A[GATED]
        for name, f in gated.directions.adapter.modules.items()
        if not (f.fused or is_embedding(name))
    }


def _keeper(seen: dict[str, torch.Tensor], name: str, weighted: bool) -> Any:
    def keep(_module: Any, _inputs: Any, out: torch.Tensor) -> torch.Tensor | None:
        if weighted:
            out = out if out.requires_grad else out.requires_grad_()
            out.retain_grad()
        seen[name] = out
        return out if weighted else None

    return keep
