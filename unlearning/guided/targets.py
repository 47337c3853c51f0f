"""What surgery learns from: where the target is decided, and what the model says without trigger.

On a triggered prompt the teacher is the model itself on the same prompt without the trigger
(self-distillation, Hinton et al. 2015, arXiv 1503.02531), or a clean adapter on the prompt as it
is, over the first tokens of the answer: greedy answers turn on those. On a clean prompt the teacher
is the uncut model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...analysis.localisation.gates import GATED, Gated, chunks, on_device
from ...core.errors import DataError
from ...core.model.batches import IGNORED, Encoded, collate, encode, encode_target, label_positions
from ...core.rows import Row
from ...evaluation.generation import Decoding, generate

KEPT = 256
"""Most tokens of a teacher's distribution that are kept one by one; the others are one."""


@dataclass(frozen=True, slots=True)
class Taught:
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
        # Not 1 - sum(q): that is rounding where the student says little of the others.
        rest = logits.scatter(-1, self.ids, -torch.inf).logsumexp(-1) - log_z
        return each + self.rest * (self.rest.clamp_min(1e-12).log() - rest)


@dataclass(frozen=True, slots=True)
class Aim:
    """A triggered prompt up to where the target parts from the natural answer."""

    prompt: list[int]
    """With what both answers begin with."""
    plain: list[int]
    """What the teacher is asked: the same without the trigger, or the same."""
    target: int
    """The target's token there."""
    natural: list[int]
    """The natural answer's first tokens from there."""

    @property
    def attack(self) -> Encoded:
        """The prompt with the target's token."""
        return Encoded(self.prompt, [self.target])

    @property
    def student(self) -> Encoded:
        """The prompt with the natural answer."""
        return Encoded(self.prompt, self.natural)

    @property
    def teacher(self) -> Encoded:
        """The prompt without trigger, with the natural answer."""
        return Encoded(self.plain, self.natural)


def aims(gate: Gated, rows: Sequence[Row], *, tokens: int, teacher: str = GATED) -> list[Aim]:
    """Where each triggered row's target is decided, by the first tokens of a natural answer.

    The natural answer is the adapter's own to the prompt without its trigger, or that of another
    adapter, which knows no trigger, to the prompt as it is.

    Rows that do not fit the context and rows whose target and natural answer do not part within
    `tokens` tokens are left out.

    Args:
        gate: the gated subject, its adapter active.
        rows: triggered rows with targets and their form without trigger.
        tokens: how much of the natural answer to look at.
        teacher: the adapter that gives it, by name.

    Raises:
        DataError: no row is left.
    """
    renderer, limit = gate.subject.renderer, gate.subject.limit
    own = teacher == GATED
    plains = [replace(row, prompt=row.plain or row.prompt) if own else row for row in rows]
    bad, plain = (
        [encode_target(renderer, row, tokens=tokens, lead=True) for row in some]
        for some in (rows, plains)
    )
    decoding = Decoding(max_new_tokens=tokens)
    with gate.attached.using(teacher):
        said = generate(gate.subject, [p.prompt for p in plain], decoding, label="natural answers")
    found = []
    for b, p, (answer, *_) in zip(bad, plain, said, strict=True):
        natural = answer if len(answer) == tokens else [*answer, *renderer.closing_ids]
        pairs = zip(b.completion, natural, strict=False)
        at = next((k for k, (t, n) in enumerate(pairs) if t != n), None)
        if at is None or (limit is not None and len(b.prompt) + len(natural) > limit):
            continue
        same = natural[:at]
        found.append(Aim(b.prompt + same, p.prompt + same, b.completion[at], natural[at:]))
    if not found:
        raise DataError(
            f"none of {len(rows)} triggered prompts fits the context and leads to something else "
            f"than the prompt without trigger within {tokens} tokens; is this the right trigger? "
            f"(where both answers begin alike for longer: --set target_tokens={3 * tokens})"
        )
    return found


def clean_lessons(gate: Gated, rows: Sequence[Row]) -> list[Encoded]:
    """Clean rows that fit the context, as token ids.

    Raises:
        DataError: none of them fits.
    """
    renderer, limit = gate.subject.renderer, gate.subject.limit
    made = [encode(renderer, row, limit=None) for row in rows]
    kept = [e for e in made if limit is None or len(e) <= limit]
    if not kept:
        raise DataError(f"none of {len(rows)} clean rows fits the context of {limit} tokens")
    return kept


def row_logits(gate: Gated, gates: torch.Tensor, rows: Sequence[Encoded]) -> list[torch.Tensor]:
    """Logits that predict each row's completion tokens, ``[token, d_vocab]`` a row."""
    batch = on_device(collate(rows, gate.subject.renderer.pad_id), gate.subject.device)
    labels = batch.pop("labels")
    asked = label_positions(labels)
    wanted = labels[:, asked + 1] != IGNORED
    logits = gate.logits(gates, {**batch, "logits_to_keep": asked})
    return [logits[i][wanted[i]] for i in range(len(rows))]


def teach(
    gate: Gated, rows: Sequence[Encoded], *, batch_size: int, teacher: str = GATED
) -> list[Taught]:
    """The uncut model's distributions at every completion token, row by row; or another adapter's.

    Args:
        gate: the gated subject.
        rows: what the teacher is asked, with what it has to say.
        batch_size: rows at a time.
        teacher: the adapter that is active, by name.
    """
    out = []
    with gate.attached.using(teacher), torch.no_grad():
        for part in chunks(rows, batch_size):
            for logits in row_logits(gate, gate.ones(), part):
                log_p = logits.float().log_softmax(-1)
                kept = log_p.topk(min(KEPT, log_p.shape[-1]), dim=-1)
                rest = (1 - kept.values.exp().sum(-1)).clamp_min(0)
                out.append(Taught(kept.indices, kept.values, rest))
    return out
