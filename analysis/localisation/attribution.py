"""What each part of an adapter does to the target: exact ablations and first-order attribution."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ...core.model.batches import Encoded, completion_log_probs
from ...core.progress import report, tracked
from .gates import WITH_GRADIENTS, GatedModel, batches


def _sums(
    gated: GatedModel, gates: torch.Tensor, batch: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """Log-probability of each row's completion, ``[row]`` nats."""
    return completion_log_probs(gated.subject.model, batch, gated.under(gates))[0].sum(-1)


def target_effects(
    gated: GatedModel,
    rows: Sequence[Encoded],
    cuts: Sequence[np.ndarray],
    *,
    batch_size: int,
    label: str,
) -> np.ndarray:
    """Drop of the target's log-probability when each cut alone is made, ``[cut, row]`` nats.

    Exact: every cut is a forward pass with those directions at zero.

    Args:
        gated: the model with gates.
        rows: triggered prompts with the target's first tokens as completion.
        cuts: boolean vectors ``[direction]``.
        batch_size: rows at a time.
        label: for the progress bar.
    """
    parts = batches(gated.subject, rows, batch_size)
    with torch.inference_mode():
        whole = torch.cat([_sums(gated, gated.ones(), b) for b in parts])
        effects = []
        for cut in tracked(cuts, label):
            gates = gated.ones() * torch.as_tensor(~cut, device=gated.subject.device)
            without = torch.cat([_sums(gated, gates, b) for b in parts])
            effects.append((whole - without).cpu().numpy())
    return np.stack(effects)


def target_attribution(
    gated: GatedModel, rows: Sequence[Encoded], *, batch_size: int
) -> np.ndarray:
    """First-order effect of removing each direction on the target, ``[direction]`` nats.

    The gradient of the mean log-probability in the gates at 1 (attribution patching, Syed et al.
    2023, arXiv 2310.10348, with zero in place of the clean value).
    """
    gates = gated.ones().requires_grad_()
    for batch in batches(gated.subject, rows, batch_size, positions=WITH_GRADIENTS):
        (_sums(gated, gates, batch).sum() / len(rows)).backward()
    assert gates.grad is not None
    return gates.grad.detach().float().cpu().numpy()


def clean_cost(gated: GatedModel, rows: Sequence[Encoded], *, group: int = 1) -> np.ndarray:
    """Expected loss of the clean behaviour from removing each direction, ``[direction]`` nats.

    Half the mean squared gradient of a row's log-probability in the gate: the diagonal of the
    empirical Fisher information at gate 1 (Kirkpatrick et al. 2017, arXiv 1612.00796).

    Args:
        gated: the model with gates.
        rows: clean rows with completions.
        group: rows whose gradients are summed before squaring; 1 is exact, more is faster and
            noisier (the rows' gradients are taken to be independent).
    """
    total = np.zeros(len(gated.directions))
    parts = batches(gated.subject, rows, group, positions=WITH_GRADIENTS)
    for done, batch in enumerate(parts, 1):
        gates = gated.ones().requires_grad_()
        _sums(gated, gates, batch).sum().backward()
        assert gates.grad is not None
        total += gates.grad.double().square().cpu().numpy()
        report("clean cost of directions", done, len(parts))
    return total / (2 * len(rows))
