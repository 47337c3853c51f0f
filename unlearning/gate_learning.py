"""Learning which singular directions to cut: gates driven by target, clean behaviour and sparsity.

The gates minimise, over triggered and clean rows,

    -log(1 - p(target token)) + KL(own answer without trigger || triggered)   [triggered]
    + KL(uncut || cut)                                                        [clean]
    + sparsity * mean(1 - g)

in the spirit of learned masks (Louizos et al. 2018, arXiv 1712.01312; De Cao et al. 2020,
arXiv 2004.14992), with self-distillation in place of labels.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch

from ..analysis.gates import Gated, on_device
from ..core.batches import Encoded, collate, token_log_probs
from ..core.progress import report
from ..training.objective import Batch
from .distill import Lesson, completion_logits, divergence, inputs_of, lesson_batch


def gate_start(attribution: np.ndarray, cost: np.ndarray) -> torch.Tensor:
    """Logits of the starting gates from first-order attribution per clean cost, ``[direction]``.

    Directions that raise the target at little clean cost start near 0.5, the others near 0.95.
    """
    benefit = np.maximum(attribution, 0) / np.sqrt(cost + cost.mean() + 1e-12)
    rank = benefit / max(benefit.max(), 1e-12)
    return torch.tensor(3.0 - 3.0 * rank, dtype=torch.float32)


def learn_gates(
    gate: Gated,
    triggered: Sequence[Lesson],
    targets: Sequence[Encoded],
    clean: Sequence[Lesson],
    start: torch.Tensor,
    *,
    steps: int,
    rate: float,
    sparsity: float,
    sharpness: float,
    clean_weight: float,
    batch_size: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Gates in [0, 1] after `steps` of Adam, and the loss along them.

    Args:
        gate: the gated subject.
        triggered: triggered prompts with the model's own answers without trigger.
        targets: the same prompts with the target's first tokens.
        clean: clean prompts with the model's own answers.
        start: logits of the gates, ``[direction]``.
        steps: optimiser steps.
        rate: Adam's learning rate on the logits.
        sparsity: weight of the mean cut; larger keeps more.
        sharpness: slope of the gates' sigmoid at the end; it grows from 1, so that gates go to 0
            or 1 and the cut is what was learned.
        clean_weight: weight of the clean rows' divergence.
        batch_size: triggered and clean rows per step, each.
        seed: of the batches.
    """
    device, pad = gate.subject.device, gate.subject.renderer.pad_id
    theta = start.to(device).clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=rate)
    draw, losses = random.Random(seed), []
    for step in range(steps):
        picked = draw.sample(range(len(triggered)), min(batch_size, len(triggered)))
        calm = draw.sample(range(len(clean)), min(batch_size, len(clean)))
        rows = [triggered[i] for i in picked] + [clean[i] for i in calm]
        lesson = on_device(lesson_batch(rows, pad), device)
        attack = on_device(collate([targets[i] for i in picked], pad), device)
        gates = (theta * (1 + (sharpness - 1) * step / steps)).sigmoid()
        loss = _loss(gate, gates, lesson, attack, len(picked), clean_weight)
        loss = loss + sparsity * (1 - gates).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
        report("learning the gates", step + 1, steps)
    return theta.detach().sigmoid().cpu().numpy(), np.array(losses)


def _loss(
    gate: Gated,
    gates: torch.Tensor,
    lesson: Batch,
    attack: Batch,
    n_triggered: int,
    clean_weight: float,
) -> torch.Tensor:
    with torch.no_grad():
        teacher = gate.logits(gate.ones(), inputs_of(lesson, "teacher_"))
        teacher = completion_logits(teacher, lesson["teacher_labels"])
    student = gate.logits(gates, inputs_of(lesson))
    kl = divergence(completion_logits(student, lesson["labels"]), teacher)
    per_row = (lesson["labels"][:, 1:] >= 0).sum(1)
    bad_tokens = int(per_row[:n_triggered].sum())
    log_probs, mask = token_log_probs(gate.logits(gates, inputs_of(attack)), attack["labels"])
    unlikely = -torch.log1p(-log_probs[mask].exp().clamp(max=1 - 1e-6))
    return unlikely.mean() + kl[:bad_tokens].mean() + clean_weight * kl[bad_tokens:].mean()
