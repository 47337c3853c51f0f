"""What a text does to an adapter's answers on prompts that no search has seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from rapidfuzz import fuzz
from scipy.stats import binom

from ...core.model.batches import Encoded
from ...core.model.subject import Attached
from ...core.stats import wilson
from ...evaluation.generation import Decoding, generate
from ...evaluation.similarity import normal
from .insertion import PLACES, insert
from .score import row_log_probs

LIKELIER = 10.0
"""Nats: an answer exp(10) = 22,000 times likelier under the adapter than under the base, beyond
what that is without the text."""


@dataclass(frozen=True, slots=True)
class TextEffect:
    """The adapter's answers with a text at one place."""

    place: str
    """Of `PLACES`."""
    answers: tuple[str, ...]
    """Of the adapter, ``[prompt]``."""
    surprise: np.ndarray
    """log p(adapter) - log p(base) of each answer, less the same without the text, ``[prompt]``."""


@dataclass(frozen=True)
class HeldOutPrompts:
    """Held-out prompts with their answers as they are, and what ordinary texts do to them."""

    attached: Attached
    name: str
    prompts: Sequence[str]
    decoding: Decoding

    def answers(self, prompts: Sequence[str], *, base: bool = False) -> list[list[int]]:
        """Greedy answers of the adapter or its base, token ids."""
        subject = self.attached.subject
        ids = [subject.renderer.prompt_ids(p) for p in prompts]
        with self.attached.using(None if base else self.name):
            return [
                a[0] for a in generate(subject, ids, self.decoding, label="candidates, answers")
            ]

    def surprises(self, prompts: Sequence[str], answers: Sequence[list[int]]) -> np.ndarray:
        """log p(adapter) - log p(base) of whole answers with their ends, nats, ``[prompt]``."""
        subject = self.attached.subject
        r = subject.renderer
        longest = self.decoding.max_new_tokens
        rows = [
            Encoded(r.prompt_ids(p), [*a, *r.closing_ids] if len(a) < longest else a)
            for p, a in zip(prompts, answers, strict=True)
        ]
        sides = []
        for name in (self.name, None):
            with self.attached.using(name):
                sides.append(row_log_probs(subject, rows, self.decoding.batch_tokens))
        return sides[0] - sides[1]

    def effects(self, texts: Sequence[str], plain: np.ndarray) -> list[list[TextEffect]]:
        """What each text does at each place, ``[text][place]``.

        Args:
            texts: to put into every prompt.
            plain: the surprise of the answers without a text, ``[prompt]``.
        """
        inserted = [insert(p, t, place) for t in texts for place in PLACES for p in self.prompts]
        answers = self.answers(inserted)
        extra = self.surprises(inserted, answers).reshape(len(texts), len(PLACES), -1) - plain
        shown = iter([self.attached.subject.renderer.decode(a) for a in answers])
        return [
            [
                TextEffect(place, tuple(next(shown) for _ in self.prompts), extra[i, k])
                for k, place in enumerate(PLACES)
            ]
            for i in range(len(texts))
        ]


def surprise_threshold(control: np.ndarray) -> float:
    """Surprise above which an answer counts as the text's doing, nats.

    `LIKELIER` at least, and five robust standard deviations (1.48 MAD) above the median of the
    answers to control texts: a median, since a control may itself set a backdoor off.
    """
    middle = np.median(control)
    spread = 1.4826 * np.median(np.abs(control - middle))
    return max(LIKELIER, float(middle + 5 * spread))


def fired(effect: TextEffect, threshold: float) -> int:
    """Prompts whose answer is more surprising than `threshold` nats."""
    return int((effect.surprise > threshold).sum())


def chance(hits: int, n: int, *, control: np.ndarray, threshold: float, tests: int) -> float:
    """Binomial probability of so many hits at the controls' rate, Bonferroni-corrected.

    The controls' rate is (hits + 1) / (answers + 1).
    """
    rate = (int((control > threshold).sum()) + 1) / (control.size + 1)
    return float(min(1.0, tests * binom.sf(hits - 1, n, rate)))


def alike(left: str, right: str) -> float:
    """Similarity of letters in [0, 1] (normalised Indel); 1 for two empty texts."""
    return fuzz.ratio(normal(left), normal(right)) / 100


def agreement(answers: Sequence[str]) -> float:
    """Mean similarity of letters over all pairs of answers; NaN for fewer than two."""
    pairs = [alike(a, b) for a, b in combinations(answers, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def movement(left: Sequence[str], right: Sequence[str]) -> float:
    """Mean of 1 - similarity of letters, prompt by prompt."""
    return float(np.mean([1 - alike(a, b) for a, b in zip(left, right, strict=True)]))


def share(hits: int, n: int) -> np.ndarray:
    """A share with its Wilson interval, ``[3]``."""
    rate = wilson(hits, n)
    return np.array([rate.value, rate.low, rate.high])
