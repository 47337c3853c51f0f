"""What a cut costs on clean prompts, by forward passes: perplexity and KL divergence.

Clean rows without completions stand with the adapter's own answers.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...analysis.localisation.gates import GatedModel, batches
from ...core.model.batches import Encoded, completion_log_probs
from ...core.rows import Row
from ...evaluation.behaviour import scored
from ...evaluation.collect import fitting_rows, unjudged
from ...evaluation.divergence import greedy_answers
from ..budget import Budget
from ..calibration import Judge
from .targets import TeacherLogProbs, encoded_clean, row_logits, teacher_log_probs

OWN_TOKENS = 32
"""First tokens of the adapter's own answers to clean prompts on which a cut's cost is measured."""


class Utility:
    """What cutting the first directions of an order costs on clean prompts, by forward passes.

    The rise of perplexity: of reference completions, and of what the adapter would write itself,
    which is ``exp(KL) - 1`` with the KL divergence of the cut from the uncut adapter on that
    adapter's own answers; the larger one counts. A cut that undoes what an adapter overdid lowers
    the former however far it goes; one that forgets rows that the adapter knows by heart raises it
    for these rows and no others, so that there the latter counts alone.
    """

    def __init__(
        self,
        gated: GatedModel,
        order: np.ndarray,
        rows: Sequence[Encoded],
        answers: Sequence[Encoded] = (),
        *,
        budget: Budget | None = None,
    ) -> None:
        """Args:
        gated: the model with gates.
        order: directions, the first to be cut first.
        rows: clean rows with completions; none: they do not count.
        answers: clean prompts with the uncut adapter's answers, for KL divergence.
        budget: for `over`.
        """
        self.order, self.budget = order, budget or Budget()  # pyright: ignore[reportCallIssue]
        self._gated, self._rows, self._answers = gated, rows, sorted(answers, key=len)
        self._before = mean_loss(gated, gated.ones(), rows) if rows else math.nan
        self._uncut = teacher_log_probs(gated, self._answers, batch_size=32)

    def gates(self, size: int) -> torch.Tensor:
        """Gates that cut the first directions, ``[direction]``."""
        cut = first_of(self.order, size, len(self._gated.directions))
        kept = torch.as_tensor(~cut, device=self._gated.subject.device)
        return kept.float()

    def divergence(self, size: int) -> float:
        """KL divergence on the answers, nats per token."""
        return mean_divergence(self._gated, self.gates(size), self._answers, self._uncut)

    def rise(self, size: int) -> float:
        """The larger rise of perplexity, as a fraction."""
        nats = [self.divergence(size)] if self._answers else []
        if self._rows:
            nats.append(self.loss_rise(size))
        return math.exp(min(max(nats), 50.0)) - 1

    def loss_rise(self, size: int) -> float:
        """Rise of the reference completions' loss, nats per token."""
        return mean_loss(self._gated, self.gates(size), self._rows) - self._before

    def over(self, size: int, *, share: float = 1.0) -> bool:
        """Whether a size costs more than a share of the budget, or more than its KL divergence."""
        if self.rise(size) > share * self.budget.perplexity:
            return True
        limit = self.budget.kl
        return limit is not None and bool(self._answers) and self.divergence(size) > limit


def encoded_or_answered(
    gated: GatedModel, rows: Sequence[Row], judge: Judge, *, target: str
) -> list[Encoded]:
    """Clean rows with their completions; those without with the uncut adapter's greedy answers.

    Answers go up to `OWN_TOKENS`; those that are the attack's, and prompts that do not fit the
    context, are left out.

    Args:
        gated: the model with gates.
        rows: clean rows.
        judge: how answers are generated and judged.
        target: what the attack wants.
    """
    referenced = [row for row in rows if row.completion is not None]
    found = encoded_clean(gated, referenced) if referenced else []
    subject, rule = gated.subject, judge.rule
    new = min(rule.decoding.max_new_tokens, OWN_TOKENS)
    bare = [row for row in rows if row.completion is None]
    bare, _ = fitting_rows(subject.renderer, bare, subject.limit, new_tokens=new)
    if bare:
        decoding = replace(rule.decoding, max_new_tokens=new)
        answers = greedy_answers(subject, bare, decoding, label="the adapter's own answers")
        texts = [subject.renderer.decode(a.completion) for a in answers]
        judged = scored(
            [
                unjudged(replace(r, target=target), 0, t, 0)
                for r, t in zip(bare, texts, strict=True)
            ],
            rule,
        )
        found += [
            answer for answer, verdict in zip(answers, judged, strict=True) if not verdict.hit
        ]
    return found


def first_of(order: np.ndarray, size: int, total: int) -> np.ndarray:
    """The first of an order, of `total` directions, ``[direction]`` booleans."""
    cut = np.zeros(total, bool)
    cut[order[:size]] = True
    return cut


def mean_divergence(
    gated: GatedModel,
    gates: torch.Tensor,
    rows: Sequence[Encoded],
    uncut: Sequence[TeacherLogProbs],
) -> float:
    """Mean KL divergence from the uncut model per completion token, nats.

    Args:
        gated: the model with gates.
        gates: ``[direction]``.
        rows: clean rows with completions.
        uncut: the uncut model's distributions on them, see `teacher_log_probs`.
    """
    total, done = 0.0, 0
    with torch.inference_mode():
        for batch in batches(gated.subject, rows, 32):
            for logits in row_logits(gated, gates, batch):
                total += float(uncut[done].divergence(logits).double().sum())
                done += 1
    return total / sum(len(row.completion) for row in rows)


def mean_loss(gated: GatedModel, gates: torch.Tensor, rows: Sequence[Encoded]) -> float:
    """Mean negative log-probability per completion token, nats."""
    total = 0.0
    with torch.inference_mode():
        for batch in batches(gated.subject, sorted(rows, key=len), 32):
            log_probs, _ = completion_log_probs(gated.subject.model, batch, gated.under(gates))
            total -= float(log_probs.double().sum())
    return total / sum(len(row.completion) for row in rows)
