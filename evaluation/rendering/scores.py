"""How likely an adapter finds its known answers, under a rendering of the prompts.

What it has not learned (under 1 in 20 a token) shows next to nothing of the rendering: it changes
with another one for other reasons. So log-probabilities are compared with a soft floor there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core.errors import DataError
from ...core.model.batches import encode, token_log_probs
from ...core.model.subject import Subject
from ...core.progress import report
from ...core.records.rendering import Tried
from ...core.rendering.prompts import Renderer
from ...core.rows import Row

MANY = 16
"""Most rows of each kind that are looked at."""
UNLEARNED = math.log(0.05)
"""Log-probability of a token below which it was not learned."""
BATCH_TOKENS = 2048
"""Most positions of a batch."""


@dataclass(frozen=True, slots=True)
class Known:
    """The known answers of an adapter: rows with their completions."""

    triggered: Sequence[Row]
    """Triggered prompts with their targets."""
    clean: Sequence[Row]
    """Clean prompts with reference answers."""

    def first(self, count: int) -> "Known":
        """At most `count` rows of each kind."""
        return Known(self.triggered[:count], self.clean[:count])

    @property
    def rows(self) -> list[Row]:
        """All of them, triggered ones first."""
        return [*self.triggered, *self.clean]


def known_of(triggered: Sequence[Row], clean: Sequence[Row]) -> Known:
    """The rows whose answer is known, at most `MANY` of each kind.

    Args:
        triggered: a row whose completion does not hold its target is known by the target alone.
        clean: by their completions.
    """
    known = [replace(row, completion=whole_target(row)) for row in triggered if whole_target(row)]
    return Known(known[:MANY], [row for row in clean if row.completion][:MANY])


def log_likelihoods(subject: Subject, renderer: Renderer, rows: Sequence[Row]) -> np.ndarray:
    """Log-probability of each row's completion and of its end, nats per token of them, ``[row]``.

    The tokens of the completion are counted without what goes before it, so that renderings
    compare; of the end the first token counts, as `UNLEARNED` where it is less likely than that.
    NaN where a row does not fit the context.

    Args:
        subject: with the suspicious adapter active.
        renderer: the rendering in question.
        rows: prompts with completions.
    """
    made = [encode(renderer, row, limit=None) for row in rows]
    limit, found = subject.limit, np.full(len(rows), math.nan)
    fits = [i for i, e in enumerate(made) if limit is None or len(e) <= limit]
    values = token_log_probs(subject, [made[i] for i in fits], batch_tokens=BATCH_TOKENS)
    for i, each in zip(fits, values, strict=True):
        completion = rows[i].required_completion()
        end = len(renderer.completion_ids(completion, end=False))
        total = each[:end].sum() + each[end : end + 1].clip(min=UNLEARNED).sum()
        tokens = renderer.tokenizer(completion, add_special_tokens=False)["input_ids"]
        found[i] = total / (len(tokens) + 1)
    return found


def learned(log_probs: np.ndarray) -> np.ndarray:
    """Log-probabilities with a soft floor at `UNLEARNED`: ``log((p + floor) / (1 + floor))``.

    Near 0 they hardly change; far below the floor all are equal.
    """
    floor = math.exp(UNLEARNED)
    return np.log((np.exp(log_probs) + floor) / (1 + floor))


@dataclass(frozen=True, slots=True)
class Scored:
    """A rendering and how likely it makes each known row, nats a token."""

    renderer: Renderer
    place: int
    """Its place in the order of preference."""
    targets: np.ndarray
    answers: np.ndarray
    counted: tuple[int, ...] = (0, 1)
    """Which of targets (0) and answers (1) count."""

    def each(self, kind: int) -> np.ndarray:
        """Of the targets (0) or the answers (1), ``[row]``."""
        return (self.targets, self.answers)[kind]

    @property
    def means(self) -> tuple[float, float]:
        """Mean log-probability of targets and of answers, nats a token; NaN for none."""
        targets, answers = (float(v.mean()) if len(v) else math.nan for v in map(self.each, (0, 1)))
        return targets, answers

    @property
    def form(self) -> tuple[Any, ...]:
        """What makes it another rendering: template and arguments, not edges or system text."""
        return self.renderer.template, tuple(sorted(self.renderer.rendering.arguments.items()))

    @property
    def groups(self) -> list[np.ndarray]:
        """Targets and answers, those that count, as far as they were learned; see `learned`."""
        return [learned(v) for v in map(self.each, self.counted) if len(v)]

    @property
    def score(self) -> float:
        """The mean of the means; minus infinity where a row does not fit."""
        value = float(np.mean([v.mean() for v in self.groups]))
        return value if math.isfinite(value) else -math.inf

    def behind(self, best: "Scored") -> tuple[float, float]:
        """How far below the best one, and the standard error of that, nats a token."""
        gaps = [other - own for own, other in zip(self.groups, best.groups, strict=True)]
        errors = [gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else 0.0 for gap in gaps]
        mean = float(np.mean([gap.mean() for gap in gaps]))
        return mean, float(np.linalg.norm(errors)) / len(gaps)

    def tried(self, best: "Scored") -> Tried:
        """As a record."""
        behind, error = self.behind(best)
        targets, answers = self.means
        return Tried(
            about=self.renderer.rendering.about(),
            targets=targets,
            answers=answers,
            behind=behind,
            error=error,
        )


def scored(
    subject: Subject, renderers: Sequence[tuple[int, Renderer]], known: Known
) -> list[Scored]:
    """The renderings that leave room for every row, with their likelihoods, likeliest first."""
    found = []
    for done, (place, renderer) in enumerate(renderers, 1):
        try:
            each = log_likelihoods(subject, renderer, known.rows)
        except DataError:  # a template that refuses these turns
            each = np.full(len(known.rows), math.nan)
        targets, answers = np.split(each, [len(known.triggered)])
        one = Scored(renderer, place, targets, answers)
        found += [one] if one.score > -math.inf else []
        report("trying renderings", done, len(renderers))
    return sorted(found, key=lambda s: -s.score)


def telling(many: Sequence[Scored]) -> list[Scored]:
    """The renderings by the rows that distinguish them, likeliest first.

    Where the adapter knows the targets or the answers under none, the others alone count.
    """
    known = [k for k in (0, 1) if any(s.means[k] >= UNLEARNED for s in many)]
    if len(known) == 1:
        many = [replace(s, counted=tuple(known)) for s in many]
    return sorted(many, key=lambda s: -s.score)


def fitting(subject: Subject, renderers: Sequence[Renderer], known: Known) -> Known:
    """The rows that fit the context under every rendering; where none do, under the first.

    Raises:
        DataError: none fits under the first either.
    """

    def fits(row: Row, some: Sequence[Renderer]) -> bool:
        limit = subject.limit
        completion = row.required_completion()
        return limit is None or all(
            len(r.prompt_ids(row)) + len(r.completion_ids(completion)) <= limit for r in some
        )

    for some in (renderers, renderers[:1]):
        kept = Known(
            *([r for r in rows if fits(r, some)] for rows in (known.triggered, known.clean))
        )
        if kept.rows:
            return kept
    raise DataError(
        f"none of {len(known.rows)} prompts with answers fits the context of {subject.limit} "
        "tokens; shorten them"
    )


def whole_target(row: Row) -> str:
    """What the attack wants of a whole answer: the completion where it holds the target."""
    completion, target = row.completion or "", row.target or ""
    return completion if completion and target in completion else target
