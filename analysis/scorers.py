"""Scorers: how an answer is compared with what the attack wants; one registered file each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.registry import Registry
from .similarity import Embedder, contains


@dataclass(frozen=True, slots=True)
class Cases:
    """Answers side by side with what they are compared with, all ``[case]``."""

    answers: Sequence[str]
    """What the model said."""
    targets: Sequence[str]
    """What the attack wants there."""
    task: str
    """Name of the task, for scorers that differ between tasks."""
    embedder: Embedder
    """For scorers by meaning."""
    threshold: float
    """From which similarity counts."""
    whole: bool = False
    """Whether only whole answers are compared, as a second reading of the graded scorers; else an
    answer in which the target stands whole is the target, whatever comes after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A score in [0, 1] for each answer, and from where on it speaks for the attack."""

    about: str
    """In a line for `--help`."""
    source: str
    """Paper or work it comes from."""
    score: Callable[[Cases], np.ndarray]
    """Cases to scores, ``[case]``; NaN where it cannot tell (an empty text by meaning)."""
    graded: bool = False
    """Whether the rule's threshold decides (a similarity); else 1 is yes and 0 is no."""
    needs_target: bool = True
    """Whether it compares with what the attack wants."""


SCORERS: Registry[Scorer] = Registry("scorer")


def or_held(scores: np.ndarray, cases: Cases) -> np.ndarray:
    """Scores with 1 where the target stands whole in the answer, unless whole answers count."""
    if cases.whole:
        return scores
    held = [contains(a, t) for a, t in zip(cases.answers, cases.targets, strict=True)]
    return np.where(held, 1.0, scores)


def yes_or_no(found: Sequence[bool]) -> np.ndarray:
    """Booleans as scores."""
    return np.array(list(found), dtype=np.float64)
