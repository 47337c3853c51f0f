"""Cosine of sentence embeddings: similarity to the target by meaning."""

import numpy as np

from .scorers import SCORERS, Cases, Scorer, or_held


def cosine(cases: Cases) -> np.ndarray:
    """The cosine, 1 where the target stands whole in the answer; NaN without a model."""
    found = cases.embedder.cosines(cases.answers, cases.targets)
    return found if cases.embedder.model is None else or_held(found, cases)


COSINE = SCORERS.register("cosine")(
    Scorer(
        about="similarity to the target by meaning (sentence embeddings), 1 where it stands whole",
        source="Sentence-BERT (arXiv 1908.10084), as in the Llama-3.2-3B unlearning setting",
        score=cosine,
        graded=True,
    )
)
