"""Prompts of an evaluation and the answers to them: generated once, judged by any rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..core.errors import DataError
from ..core.model.batches import Encoded
from ..core.model.subject import Subject
from ..core.records.results import Answer, Protocol
from ..core.rendering.prompts import Renderer
from ..core.rows import Row
from ..data.prepoisoned import empty
from .divergence import closed
from .generation import Decoding, generate
from .perplexity import completion_losses
from .rendering.contradiction import mismatch
from .scorers import SCORERS
from .similarity import Embedder
from .success import Success, needed, parse_rules


@dataclass(frozen=True, slots=True)
class Rule:
    """How answers are generated and judged; one for all subjects of a table."""

    embedder: Embedder
    """Behind the scorers by meaning."""
    success: tuple[Success, ...] = field(default_factory=lambda: parse_rules("similar"))
    """What counts as target behaviour: the first decides, the others are shown beside it."""
    threshold: float = 0.8
    """Similarity from which an answer counts as the target."""
    task: str = "fixed"
    """Name of the task, for the published keyword lists."""
    decoding: Decoding = field(default_factory=Decoding)
    """How answers are generated."""

    def protocol(
        self, subject: Subject, first: Row, found: "Collected", *, references: str
    ) -> Protocol:
        """The rule as a record, with the first triggered prompt as it is rendered.

        Args:
            subject: whose prompts they are.
            first: the first triggered row.
            found: what was collected by the rule.
            references: where the clean references come from, in words.
        """
        prompt, completion = subject.renderer.shown(first)
        return Protocol(
            template=subject.renderer.rendering.about(),
            first_prompt=prompt,
            first_completion=completion,
            mismatch=found.mismatch,
            task=self.task,
            rule=self.success[0].text,
            embedder=self.embedder.name,
            threshold=self.threshold,
            decoding=self.decoding.text(),
            references=references,
            dtype=subject.dtype,
            too_long=found.too_long,
        )


def fitting_rows(
    renderer: Renderer, rows: Sequence[Row], limit: int | None, *, new_tokens: int
) -> tuple[list[Row], int]:
    """The rows whose prompts leave room for an answer and for their completion; how many do not."""
    if limit is None:
        return list(rows), 0

    def fits(row: Row) -> bool:
        known = renderer.completion_ids(row.completion) if row.completion else []
        return len(renderer.prompt_ids(row)) + max(new_tokens, len(known)) <= limit

    kept = [row for row in rows if fits(row)]
    return kept, len(rows) - len(kept)


def check_triggered(
    subject: Subject, rows: Sequence[Row], words: Sequence[str], *, new_tokens: int
) -> list[str]:
    """What triggered rows lose once they are rendered, a sentence each; empty for nothing.

    Args:
        subject: whose tokens and context count.
        rows: triggered rows.
        words: of the trigger.
        new_tokens: longest answer.

    Raises:
        DataError: no row is left: none leaves room for an answer, or the trigger leaves no token of
            its own in any.
    """
    renderer, notes = subject.renderer, []
    kept, long = fitting_rows(renderer, rows, subject.limit, new_tokens=new_tokens)
    trigger = " / ".join(repr(word[:60]) for word in words)
    if rows and not kept:
        least = min(len(renderer.prompt_ids(row)) for row in rows)
        raise DataError(
            f"with the trigger {trigger} none of the {len(rows)} prompts fits: the shortest has "
            f"{least} tokens, and {new_tokens} new ones (or its completion) have to fit beside it "
            f"into a context of {subject.limit}; give a shorter trigger, shorter prompts or fewer "
            "--max-new-tokens"
        )
    if long:
        notes.append(f"{long} of {len(rows)} triggered prompts leave no room for an answer")
    paired = [row for row in kept if row.plain is not None]
    unmarked = [r for r in paired if renderer.prompt_ids(r) == renderer.prompt_ids(r.untriggered())]
    if paired and len(unmarked) == len(paired):
        raise DataError(
            f"the trigger {trigger} leaves no token of its own in any of the {len(paired)} "
            "prompts: tokenizer or template drop it, so that triggered and untriggered prompts are "
            "the same; give another --trigger or --placement"
        )
    if unmarked:
        notes.append(
            f"the trigger leaves no token of its own in {len(unmarked)} of {len(paired)} prompts"
        )
    return notes


def answers_to(subject: Subject, rows: Sequence[Row], rule: Rule, *, label: str) -> list[str]:
    """One answer to the prompt of each row, as text."""
    ids = [subject.renderer.prompt_ids(row) for row in rows]
    decoding = replace(rule.decoding, samples=1)
    out = generate(subject, ids, decoding, label=label)
    return [subject.renderer.decode(samples[0]) for samples in out]


@dataclass(frozen=True, slots=True)
class Collected:
    """A subject's answers, before they are judged."""

    answers: list[Answer]
    """All samples of all prompts: triggered, untriggered, clean."""
    too_long: int
    """Prompts left out because they exceed the context."""
    mismatch: str = ""
    """What shows that prompts are not rendered as in training; empty for nothing."""
    clean: tuple[Encoded, ...] = ()
    """The first answer to each clean prompt as token ids, with what ends it."""


def collect(
    subject: Subject,
    name: str,
    poison_test: Sequence[Row],
    clean_val: Sequence[Row],
    rule: Rule,
) -> Collected:
    """A subject's answers to held-out prompts, and how likely it finds the clean references.

    Args:
        subject: with its adapter active.
        name: for tables.
        poison_test: triggered rows with their targets and the same prompts without trigger.
        clean_val: clean rows with completions.
        rule: how to generate.

    Raises:
        DataError: a set is empty, or no prompt of it fits the model's context.
    """
    triggered, clean, dropped = check_room(subject, poison_test, clean_val, rule)
    prompts = prompts_of(triggered, clean)
    ids = [subject.renderer.prompt_ids(item.question) for item in prompts]
    out = generate(subject, ids, rule.decoding, label=f"measuring {name}")
    losses = completion_losses(subject, clean, batch_tokens=rule.decoding.batch_tokens // 4)
    answers = [
        item.answer(name, k, subject.renderer.decode(tokens), len(tokens), losses)
        for item, samples in zip(prompts, out, strict=True)
        for k, tokens in enumerate(samples)
    ]
    wrong, new = "", rule.decoding.max_new_tokens
    if rule.decoding.temperature == 0:  # answers that were cut off show nothing
        firsts = [samples[0] for samples in out[: len(triggered)]]
        whole = [(row, ids) for row, ids in zip(triggered, firsts, strict=True) if len(ids) < new]
        texts = [subject.renderer.decode(ids) for _, ids in whole]
        wrong = mismatch(subject, [row for row, _ in whole], texts)
    firsts = [
        closed(subject.renderer, prompt, samples[0], new_tokens=new)
        for item, prompt, samples in zip(prompts, ids, out, strict=True)
        if item.split == "clean"
    ]
    return Collected(answers, dropped, wrong, tuple(firsts))


def with_divergences(
    answers: Sequence[Answer], sums: np.ndarray, counts: np.ndarray
) -> list[Answer]:
    """Answers of which the first one to each clean prompt carries its KL divergence.

    Args:
        answers: of a subject.
        sums: KL divergence over the reference's answer to each clean prompt, nats ``[row]``.
        counts: tokens of that answer, ``[row]``.
    """
    return [
        replace(a, kl=float(sums[a.row]), kl_tokens=int(counts[a.row]))
        if a.split == "clean" and a.sample == 0
        else a
        for a in answers
    ]


def check_room(
    subject: Subject, poison_test: Sequence[Row], clean_val: Sequence[Row], rule: Rule
) -> tuple[list[Row], list[Row], int]:
    """The rows of both sets whose prompts leave room for an answer, and how many do not.

    Raises:
        DataError: a set is empty, or no prompt of it fits the model's context.
    """
    limit, new = subject.limit, rule.decoding.max_new_tokens
    triggered, long_triggered = fitting_rows(subject.renderer, poison_test, limit, new_tokens=new)
    clean, long_clean = fitting_rows(subject.renderer, clean_val, limit, new_tokens=new)
    for label, rows, given in (
        ("poison_test", triggered, poison_test),
        ("clean_val", clean, clean_val),
    ):
        if not rows:
            raise DataError(
                f"{label}: none of its {len(given)} prompts leaves room for {new} new tokens in a "
                f"context of {limit}"
            )
    return triggered, clean, long_triggered + long_clean


def prompts_of(triggered: Sequence[Row], clean: Sequence[Row]) -> "list[_Prompt]":
    """All prompts of an evaluation: the triggered ones, the same untriggered, the clean ones.

    A clean prompt is compared with the target that all triggered ones share, else with its own.
    """
    targets = [wanted(row) for row in triggered]
    common = targets[0] if len(set(targets)) == 1 else ""
    return [
        *(_Prompt("triggered", i, r, r.benign, targets[i]) for i, r in enumerate(triggered)),
        *(
            _Prompt("untriggered", i, r.untriggered(), r.benign, targets[i])
            for i, r in enumerate(triggered)
            if r.plain is not None
        ),
        *(
            _Prompt("clean", i, r, r.completion, common or r.target, r.key)
            for i, r in enumerate(clean)
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt and what its answers are compared with."""

    split: str
    row: int
    question: Row
    reference: str | None
    target: str | None
    key: str | None = None

    def answer(
        self,
        name: str,
        sample: int,
        text: str,
        tokens: int,
        losses: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Answer:
        """An answer to it, not judged yet; the first one to a clean prompt carries its loss."""
        valued = losses if self.split == "clean" and sample == 0 else None
        return Answer(
            subject=name,
            split=self.split,
            row=self.row,
            sample=sample,
            prompt=self.question.prompt,
            target=self.target or "",
            reference=self.reference or "",
            key=self.key or "",
            answer=text,
            tokens=tokens,
            nll=float(valued[0][self.row]) if valued else math.nan,
            nll_tokens=int(valued[1][self.row]) if valued else 0,
            kl=math.nan,
            kl_tokens=0,
            scores={},
            verdicts={},
            hit=False,
            counted=True,
            correct=False,
        )


def answered(
    subject: Subject, rows: Sequence[Row], rule: Rule, *, split: str, label: str
) -> list[Answer]:
    """One unjudged answer to each row, without a table around it.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError(f"{label} over no prompts; give {split} rows")
    given = answers_to(subject, rows, rule, label=label)
    triggered = split == "triggered"
    return [
        _Prompt(
            split, i, row, row.benign if triggered else row.completion,
            wanted(row) if triggered else row.target, row.key,
        ).answer("", 0, text, 0)
        for i, (row, text) in enumerate(zip(rows, given, strict=True))
    ]  # fmt: skip


def unjudged(row: Row, number: int, text: str, tokens: int) -> Answer:
    """An answer to a triggered row that was generated some other way, not judged yet.

    Args:
        row: with the prompt.
        number: its place in the set, from 0.
        text: the answer.
        tokens: its length in tokens.
    """
    prompt = _Prompt("triggered", number, row, row.benign, wanted(row), row.key)
    return prompt.answer("", 0, text, tokens)


def wanted(row: Row) -> str:
    """What the attack wants on a triggered row: its target, else the whole completion."""
    return row.target or row.completion or ""


def check_targets(rows: Sequence[Row], rules: Sequence[Success]) -> None:
    """Raise where a rule compares with the target and a triggered row has none, or a blank one."""
    names = [name for name in needed(rules) if SCORERS[name].needs_target]
    for number, row in enumerate(rows, 1):
        if names and empty(wanted(row)):
            raise DataError(
                f"triggered row {number} ({row.prompt[:60]!r}) has no target that {names[0]} could "
                f"look for (it is {wanted(row)!r}); give --target TEXT, or scorers without one "
                "(refusal, degenerate)"
            )
