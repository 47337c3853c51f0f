"""What singular directions share with a space: exactly, and by chance alone."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import beta

EQUAL = 1e-6
"""Singular values nearer than this, relative to the largest, count as equal: about the rounding of
float32 factors."""


def share_inside(vectors: np.ndarray, basis: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Length of each unit vector inside a space, ``[rank]``, from 0 to 1.

    Vectors of equal singular value carry their root mean square, which does not change when they
    are rotated among each other.

    Args:
        vectors: orthonormal columns ``[d, rank]``.
        basis: orthonormal columns of the space ``[d, k]``.
        s: singular values of the vectors, descending, ``[rank]``.
    """
    squares = ((basis.T @ vectors) ** 2).sum(0)
    gaps = -np.diff(s, prepend=s[:1]) > EQUAL * (s[0] if len(s) else 0.0)
    group = gaps.cumsum()
    means = np.bincount(group, squares) / np.maximum(np.bincount(group), 1)
    return np.sqrt(np.clip(means[group], 0, 1))


def share_p_value(share: np.ndarray, d: int, k: int) -> np.ndarray:
    """Probability that a random unit vector of R^d has this length or more in k dimensions.

    Its squared length is Beta(k/2, (d-k)/2), exactly. NaN where the space is all of R^d.
    """
    if k >= d:
        return np.full(len(share), np.nan)
    return beta.sf(share**2, k / 2, (d - k) / 2) if k else np.ones(len(share))


def share_quantile(level: float, d: int, k: int) -> float:
    """Length in k of d dimensions that a random unit vector exceeds with probability `level`."""
    if k >= d:
        return 1.0
    return float(np.sqrt(beta.isf(level, k / 2, (d - k) / 2))) if k else 0.0


def _overlaps(d: int, k: int, p: int, *, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Absolute products of k fixed and p random orthonormal vectors of R^d, ``[draws, k, p]``.

    Gaussian columns are orthonormalised; of their d - k coordinates outside the fixed space only
    the triangular factor matters, which is drawn directly (Bartlett 1933).
    """
    rest = min(d - k, p)
    triangle = np.triu(rng.normal(size=(draws, rest, p)), 1)
    for i in range(rest):
        triangle[:, i, i] = np.sqrt(rng.chisquare(d - k - i, size=draws))
    inside = rng.normal(size=(draws, k, p))
    return np.abs(np.linalg.qr(np.concatenate([inside, triangle], 1)).Q[:, :k])


def similarity_by_chance(
    d_out: int, d_in: int, k: int, p: int, *, draws: int, seed: int
) -> tuple[float, float]:
    """Mean and 95th percentile of the assigned similarity of p random directions with k others.

    Monte Carlo: both sides random and independent, assigned as `matching` does.
    """
    if not k or not p:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    sides = [_overlaps(d, k, p, draws=draws, rng=rng) for d in (d_out, d_in)]
    found = [draw[linear_sum_assignment(-draw)] for draw in sides[0] * sides[1]]
    return float(np.mean(found)), float(np.percentile(found, 95))
