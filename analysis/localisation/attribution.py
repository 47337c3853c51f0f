"""What each part of an adapter does to the target: exact ablations and first-order attribution."""

from collections.abc import Sequence

import numpy as np
import torch

from ...core.model.batches import Encoded, collate, label_positions, log_probs_of
from ...core.progress import report, tracked
from .gates import Gated, chunks, on_device


def _batches(gate: Gated, rows: Sequence[Encoded], size: int) -> list[dict[str, torch.Tensor]]:
    pad, device = gate.subject.renderer.pad_id, gate.subject.device
    return [on_device(collate(part, pad), device) for part in chunks(rows, size)]


def _sums(gate: Gated, gates: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probability of each row's completion, ``[row]`` nats."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    asked = label_positions(batch["labels"])
    logits = gate.logits(gates, {**inputs, "logits_to_keep": asked})
    return log_probs_of(logits, batch["labels"][:, asked + 1])[0].sum(-1)


def target_effects(
    gate: Gated, rows: Sequence[Encoded], cuts: Sequence[np.ndarray], *, batch_size: int, label: str
) -> np.ndarray:
    """Drop of the target's log-probability when each cut alone is made, ``[cut, row]`` nats.

    Exact: every cut is a forward pass with those directions at zero.

    Args:
        gate: the gated subject.
        rows: triggered prompts with the target's first tokens as completion.
        cuts: boolean vectors ``[direction]``.
        batch_size: rows at a time.
        label: for the progress bar.
    """
    batches = _batches(gate, rows, batch_size)
    with torch.inference_mode():
        whole = torch.cat([_sums(gate, gate.ones(), b) for b in batches])
        effects = []
        for cut in tracked(cuts, label):
            gates = gate.ones() * torch.as_tensor(~cut, device=gate.subject.device)
            without = torch.cat([_sums(gate, gates, b) for b in batches])
            effects.append((whole - without).cpu().numpy())
    return np.stack(effects)


def target_attribution(gate: Gated, rows: Sequence[Encoded], *, batch_size: int) -> np.ndarray:
    """First-order effect of removing each direction on the target, ``[direction]`` nats.

    The gradient of the mean log-probability in the gates at 1 (attribution patching, Syed et al.
    2023, arXiv 2310.10348, with zero in place of the clean value).
    """
    gates = gate.ones().requires_grad_()
    for batch in _batches(gate, rows, batch_size):
        (_sums(gate, gates, batch).sum() / len(rows)).backward()
    assert gates.grad is not None
    return gates.grad.detach().float().cpu().numpy()


def clean_cost(gate: Gated, rows: Sequence[Encoded], *, group: int = 1) -> np.ndarray:
    """Expected loss of the clean behaviour from removing each direction, ``[direction]`` nats.

    Half the mean squared gradient of a row's log-probability in the gate: the diagonal of the
    empirical Fisher information at gate 1 (Kirkpatrick et al. 2017, arXiv 1612.00796).

    Args:
        gate: the gated subject.
        rows: clean rows with completions.
        group: rows whose gradients are summed before squaring; 1 is exact, more is faster and
            noisier (the rows' gradients are taken to be independent).
    """
    total = np.zeros(len(gate.directions))
    for done, batch in enumerate(batches := _batches(gate, rows, group), 1):
        gates = gate.ones().requires_grad_()
        _sums(gate, gates, batch).sum().backward()
        assert gates.grad is not None
        total += gates.grad.double().square().cpu().numpy()
        report("clean cost of directions", done, len(batches))
    return total / (2 * len(rows))
