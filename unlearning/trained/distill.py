"""The model as its own teacher: what it answers without the trigger, and how surely."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...core.errors import DataError
from ...core.model.batches import Encoded, collate, completion_logits, encode
from ...core.model.subject import Subject
from ...core.rendering.prompts import Renderer
from ...core.rows import Row
from ...evaluation.collect import Rule, answers_to
from ...training.objective import Batch


@dataclass(frozen=True, slots=True)
class DistillRow:
    """One completion after two prompts: the student sees one, the teacher the other."""

    student: Encoded
    """E.g. the triggered prompt and the model's answer without the trigger."""
    teacher: Encoded
    """E.g. the untriggered prompt and the same answer; equal to `student` on clean rows."""

    def __len__(self) -> int:
        return max(len(self.student), len(self.teacher))


def own_answers(subject: Subject, rows: Sequence[Row], rule: Rule, *, label: str) -> list[Row]:
    """The rows with the active model's own greedy answers to their prompts without trigger."""
    greedy = replace(rule, decoding=replace(rule.decoding, temperature=0.0, samples=1))
    answers = answers_to(
        subject, [replace(row, prompt=row.plain or row.prompt) for row in rows], greedy, label=label
    )
    return [replace(row, completion=a, key=None) for row, a in zip(rows, answers, strict=True)]


def distill_rows(
    renderer: Renderer, rows: Sequence[Row], *, limit: int | None
) -> tuple[list[Row], list[DistillRow]]:
    """Rows as lessons: triggered rows are taught by their form without trigger.

    Returns:
        The rows whose prompt and answer fit the context, and their lessons.

    Raises:
        DataError: none of them fits.
    """
    kept, made = [], []
    for row in rows:
        student = encode(renderer, row, limit=None)
        teacher = encode(renderer, replace(row, prompt=row.plain or row.prompt), limit=None)
        if limit is None or max(len(student), len(teacher)) <= limit:
            kept.append(row)
            made.append(DistillRow(student, teacher))
    if not made:
        raise DataError(
            f"none of {len(rows)} prompts fits the context of {limit} tokens with its answer; "
            "lower --max-new-tokens or give shorter prompts"
        )
    return kept, made


def distill_batch(rows: Sequence[DistillRow], pad_id: int) -> Batch:
    """Student and teacher batches side by side, the teacher's keys with ``teacher_`` before."""
    student = collate([row.student for row in rows], pad_id)
    teacher = collate([row.teacher for row in rows], pad_id)
    return student | {f"teacher_{name}": value for name, value in teacher.items()}


def side_logits(model: Any, batch: Batch, side: str = "") -> torch.Tensor:
    """Logits that predict one side's labelled tokens, row by row, ``[token, d_vocab]`` float32."""
    given = {name: batch[side + name] for name in ("input_ids", "attention_mask", "labels")}
    return completion_logits(model, given)[0].float()


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) per token, ``[token]`` nats; logits ``[token, d_vocab]``."""
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
