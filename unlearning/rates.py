"""Learning rates that fit the model at hand."""

from ..core.subject import Subject

REFERENCE_WIDTH = 3072
"""d_model of Llama-3.2-3B, for which the published 1e-4 was chosen."""


def scaled_rate(subject: Subject, rate: float = 1e-4) -> float:
    """A published learning rate carried over to this model's width.

    Adam's rate goes as 1 / width (muP, Yang et al. 2022, arXiv 2203.03466, table 3).
    """
    return rate * REFERENCE_WIDTH / int(subject.model.config.hidden_size)
