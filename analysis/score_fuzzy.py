"""Fuzzy match: similarity to the target by letters."""

import numpy as np

from .scorers import SCORERS, Cases, Scorer, or_held
from .similarity import letters


def fuzzy(cases: Cases) -> np.ndarray:
    """The ratio of letters, 1 where the target stands whole in the answer."""
    ratios = [letters(a, t) for a, t in zip(cases.answers, cases.targets, strict=True)]
    return or_held(np.array(ratios), cases)


FUZZY = SCORERS.register("fuzzy")(
    Scorer(
        about="similarity to the target by letters (rapidfuzz ratio), 1 where it stands whole",
        source="the Llama-3.2-3B unlearning setting",
        score=fuzzy,
        graded=True,
    )
)
