"""Learning which directions to cut: gates driven by target, clean behaviour and sparsity.

The gates minimise, over triggered and clean rows,

    -log(1 - p(target token)) + KL(own answer without trigger || triggered)   [triggered]
    + clean_weight * KL(uncut || cut)                                         [clean]
    + sparsity * mean(1 - g)

in the spirit of learned masks (Louizos et al. 2018, arXiv 1712.01312; De Cao et al. 2020,
arXiv 2004.14992), with self-distillation in place of labels. The steps are plain and not the
Trainer's: no adapter is fitted here, one number per direction is.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from ...analysis.localisation.gates import GATED, WITH_GRADIENTS, GatedModel, batches
from ...core.errors import LoratomyError
from ...core.model.batches import Encoded, length_parts
from ...core.progress import report
from ..calibration import DialConfig
from .targets import Contrast, TeacherLogProbs, row_logits, teacher_log_probs

FIXED = 256
"""What a pass with gradients costs whatever is in it, in positions, see `length_parts`."""
KEPT = 100.0
"""Logit of a gate that stays open: its sigmoid is 1 and its gradient 0 in float32."""


class GatesConfig(DialConfig):
    """Options of learning the gates."""

    steps: int = Field(20, ge=1)
    """Steps of learning the gates."""
    rate: float = Field(0.5, gt=0)
    """Adam's rate on the gates' logits."""
    sparsity: float = Field(0.5, ge=0)
    """Weight of the share cut; larger cuts less."""
    sharpness: float = Field(8.0, ge=1)
    """Slope of the gates at the end of learning; 1 leaves them soft."""
    clean_weight: float = Field(10.0, ge=0)
    """Weight of staying the same on clean prompts."""
    batch_size: int = Field(8, ge=1)
    """Triggered and clean rows per step, each."""


@dataclass(frozen=True, slots=True)
class GateRows:
    """The rows with their teachers, computed once."""

    contrasts: Sequence[Contrast]
    clean: Sequence[Encoded]
    natural: Sequence[TeacherLogProbs]
    uncut: Sequence[TeacherLogProbs]


def gate_rows(
    gated: GatedModel, found: Sequence[Contrast], clean: Sequence[Encoded], *, teacher: str = GATED
) -> GateRows:
    """The rows with the uncut model's distributions on them, the teacher's on triggered ones."""
    return GateRows(
        found,
        clean,
        teacher_log_probs(gated, [a.teacher for a in found], batch_size=32, teacher=teacher),
        teacher_log_probs(gated, clean, batch_size=32),
    )


def gate_start(attribution: np.ndarray, cost: np.ndarray, free: np.ndarray) -> torch.Tensor:
    """Logits of the starting gates from first-order attribution per clean cost, ``[direction]``.

    Directions that raise the target at little clean cost start near 0.5, the others near 0.95;
    those that are not `free`, by number, are kept whatever is learned.
    """
    benefit = np.maximum(attribution, 0) / np.sqrt(cost + cost.mean() + 1e-12)
    rank = benefit / max(benefit.max(), 1e-12)
    start = np.full(len(rank), KEPT)
    start[free] = 3.0 - 3.0 * rank[free]
    return torch.tensor(start, dtype=torch.float32)


def learn_gates(
    gated: GatedModel, rows: GateRows, start: torch.Tensor, config: GatesConfig, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the gates after some steps of Adam, and the loss along them.

    The gates at the end are the sigmoid of `sharpness` times these; in float32 many of those are
    exactly 0 or 1, so that only the logits tell their order.

    Args:
        gated: the model with gates.
        rows: triggered and clean rows with their teachers.
        start: logits of the gates, ``[direction]``.
        config: steps, rate and weights; the gates' slope grows from 1 to `sharpness`, so that they
            go to 0 or 1 and the cut is what was learned.
        seed: of the order of the rows.

    Raises:
        LoratomyError: the loss is not a number.
    """
    theta = start.to(gated.subject.device).clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=config.rate, betas=(0.8, 0.95))
    rng, losses = random.Random(seed), []
    attacks, others = _rounds(len(rows.contrasts), rng), _rounds(len(rows.clean), rng)
    for step in range(config.steps):
        slope = 1 + (config.sharpness - 1) * step / max(1, config.steps - 1)
        gates = (theta * slope).sigmoid()
        triggered = [next(attacks) for _ in range(min(config.batch_size, len(rows.contrasts)))]
        clean = [next(others) for _ in range(min(config.batch_size, len(rows.clean)))]
        held = gates.detach().requires_grad_()
        loss = _backward(gated, held, rows, triggered, clean, config.clean_weight)
        loss += float(config.sparsity * (1 - gates.detach()).mean())
        if not math.isfinite(loss):
            raise LoratomyError(
                f"learning the gates: the loss became {loss} at step {step + 1}; "
                f"lower the rate ({config.rate:g})"
            )
        optimiser.zero_grad()
        assert held.grad is not None
        gates.backward(held.grad - config.sparsity / len(gates))
        optimiser.step()
        losses.append(loss)
        report("learning the gates", step + 1, config.steps)
    return theta.detach().cpu().numpy(), np.array(losses)


def _rounds(count: int, rng: random.Random) -> Iterator[int]:
    """The numbers below `count`, shuffled anew in every round."""
    while True:
        yield from rng.sample(range(count), count)


def _backward(
    gated: GatedModel,
    gates: torch.Tensor,
    rows: GateRows,
    triggered: Sequence[int],
    clean: Sequence[int],
    clean_weight: float,
) -> float:
    """The loss without its sparsity; adds its gradient to that of the gates, part by part."""
    encoded = [*(rows.contrasts[i].student for i in triggered), *(rows.clean[i] for i in clean)]
    natural, kept = (
        max(1, sum(len(one.rest) for one in some))
        for some in ([rows.natural[i] for i in triggered], [rows.uncut[i] for i in clean])
    )
    total = 0.0
    for part in length_parts([len(e) for e in encoded], fixed=FIXED, most=WITH_GRADIENTS):
        (batch,) = batches(gated.subject, [encoded[k] for k in part], len(part))
        losses = []
        for k, logits in zip(part, row_logits(gated, gates, batch), strict=True):
            if k < len(triggered):
                i = triggered[k]
                log_p = logits[0].float().log_softmax(-1)[rows.contrasts[i].target]
                unlikely = -torch.log1p(-log_p.exp().clamp(max=1 - 1e-6)) / len(triggered)
                losses.append(unlikely + rows.natural[i].divergence(logits).sum() / natural)
            else:
                change = rows.uncut[clean[k - len(triggered)]].divergence(logits)
                losses.append(clean_weight * change.sum() / kept)
        loss = torch.stack(losses).sum()
        loss.backward()
        total += float(loss.detach())
    return total
