"""What surgery learns from: where the target is decided, and the natural answers' probabilities.

On a triggered prompt the teacher is the model itself on the same prompt without the trigger
(self-distillation, Hinton et al. 2015, arXiv 1503.02531), or a clean adapter on the prompt as it
is, over the first tokens of the answer: greedy answers turn on those. On a clean prompt the teacher
is the uncut model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...analysis.localisation.gates import GATED, GatedModel, batches
from ...core.errors import DataError
from ...core.model.batches import IGNORED, Encoded, completion_logits, encode, encode_target
from ...core.rows import Row
from ...evaluation.generation import Decoding, generate

KEPT = 256
"""Most tokens of a teacher's distribution that are kept one by one; the others are one."""


@dataclass(frozen=True, slots=True)
class TeacherLogProbs:
    """The teacher's distributions at the completion tokens of one row."""

    ids: torch.Tensor
    """Its likeliest tokens, ``[token, kept]``."""
    log_p: torch.Tensor
    """Their log-probabilities, nats, ``[token, kept]``."""
    rest: torch.Tensor
    """Probability of all others, ``[token]``."""

    def divergence(self, logits: torch.Tensor) -> torch.Tensor:
        """KL(teacher || student) per token with the other tokens as one, ``[token]`` nats.

        Exact where every token is kept, else a lower bound (data processing inequality).
        """
        logits = logits.float()
        log_z = logits.logsumexp(-1)
        log_q = logits.gather(-1, self.ids) - log_z[:, None]
        each = (self.log_p.exp() * (self.log_p - log_q)).sum(-1)
        if self.ids.shape[-1] == logits.shape[-1]:
            return each
        # Not 1 - sum(q): that is rounding where the student gives the others little.
        rest = logits.scatter(-1, self.ids, -torch.inf).logsumexp(-1) - log_z
        return each + self.rest * (self.rest.clamp_min(1e-12).log() - rest)


@dataclass(frozen=True, slots=True)
class Contrast:
    """A triggered prompt up to where the target parts from the natural answer."""

    prompt: list[int]
    """The triggered prompt and the tokens with which both answers begin."""
    plain: list[int]
    """The teacher's prompt: the same without the trigger, or the same."""
    target: int
    """The target's token there."""
    natural: list[int]
    """The natural answer's first tokens from there."""

    @property
    def attack(self) -> Encoded:
        """The prompt with the target's token."""
        return Encoded(self.prompt, [self.target])

    @property
    def unattacked(self) -> Encoded:
        """The teacher's prompt with the target's token."""
        return Encoded(self.plain, [self.target])

    @property
    def student(self) -> Encoded:
        """The prompt with the natural answer."""
        return Encoded(self.prompt, self.natural)

    @property
    def teacher(self) -> Encoded:
        """The prompt without trigger, with the natural answer."""
        return Encoded(self.plain, self.natural)


def contrasts(
    gated: GatedModel, rows: Sequence[Row], *, tokens: int, teacher: str = GATED
) -> list[Contrast]:
    """Where each triggered row's target is decided, by the first tokens of a natural answer.

    The natural answer is the adapter's own to the prompt without its trigger, or that of another
    adapter, which knows no trigger, to the prompt as it is.

    Rows that do not fit the context and rows whose target and natural answer do not part within
    `tokens` tokens are left out.

    Args:
        gated: the model with gates, its adapter active.
        rows: triggered rows with targets and their form without trigger.
        tokens: how much of the natural answer to look at.
        teacher: the adapter that gives it, by name.

    Raises:
        DataError: no row is left.
    """
    renderer, limit = gated.subject.renderer, gated.subject.limit
    own = teacher == GATED
    plains = [replace(row, prompt=row.plain or row.prompt) if own else row for row in rows]
    triggered, plain = (
        [encode_target(renderer, row, tokens=tokens, lead=True) for row in some]
        for some in (rows, plains)
    )
    decoding = Decoding(max_new_tokens=tokens)
    with gated.attached.using(teacher):
        answers = generate(
            gated.subject, [p.prompt for p in plain], decoding, label="natural answers"
        )
    found = []
    for t, p, (answer, *_) in zip(triggered, plain, answers, strict=True):
        natural = answer if len(answer) == tokens else [*answer, *renderer.closing_ids]
        pairs = zip(t.completion, natural, strict=False)
        at = next((k for k, (one, other) in enumerate(pairs) if one != other), None)
        if at is None or (limit is not None and len(t.prompt) + len(natural) > limit):
            continue
        same = natural[:at]
        found.append(Contrast(t.prompt + same, p.prompt + same, t.completion[at], natural[at:]))
    if not found:
        raise DataError(
            f"none of {len(rows)} triggered prompts fits the context and leads to something else "
            f"than the prompt without trigger within {tokens} tokens; is this the right trigger? "
            f"(where both answers begin alike for longer: --set target_tokens={3 * tokens})"
        )
    return found


def encoded_clean(gated: GatedModel, rows: Sequence[Row]) -> list[Encoded]:
    """Clean rows that fit the context, as token ids.

    Raises:
        DataError: none of them fits.
    """
    renderer, limit = gated.subject.renderer, gated.subject.limit
    made = [encode(renderer, row, limit=None) for row in rows]
    kept = [e for e in made if limit is None or len(e) <= limit]
    if not kept:
        raise DataError(f"none of {len(rows)} clean rows fits the context of {limit} tokens")
    return kept


def row_logits(
    gated: GatedModel, gates: torch.Tensor, batch: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """Logits that predict each row's completion tokens, ``[token, d_vocab]`` a row."""
    logits, _ = completion_logits(gated.subject.model, batch, gated.under(gates))
    return list(logits.split((batch["labels"][:, 1:] != IGNORED).sum(-1).tolist()))


def teacher_log_probs(
    gated: GatedModel, rows: Sequence[Encoded], *, batch_size: int, teacher: str = GATED
) -> list[TeacherLogProbs]:
    """The uncut model's distributions at every completion token, row by row; or another adapter's.

    Args:
        gated: the model with gates.
        rows: prompts for the teacher, with the completions whose tokens count.
        batch_size: rows at a time.
        teacher: the adapter that is active, by name.
    """
    out = []
    with gated.attached.using(teacher), torch.no_grad():
        for batch in batches(gated.subject, rows, batch_size):
            for logits in row_logits(gated, gated.ones(), batch):
                log_p = logits.float().log_softmax(-1)
                kept = log_p.topk(min(KEPT, log_p.shape[-1]), dim=-1)
                rest = (1 - kept.values.exp().sum(-1)).clamp_min(0)
                out.append(TeacherLogProbs(kept.indices, kept.values, rest))
    return out
