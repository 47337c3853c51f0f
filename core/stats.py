"""Intervals: Wilson for shares, bootstrap for means and for ratios."""

import math
from collections.abc import Sequence

import numpy as np

from .records.results import Rate

Z95 = 1.959963984540054


def wilson(hits: float, n: int) -> Rate:
    """A share with its 95 % score interval (Wilson 1927), which stays inside [0, 1].

    Args:
        hits: successes, 0 <= hits <= n; a fraction where a case is itself a share.
        n: trials, at least 1.

    Raises:
        ValueError: a rate over nothing, or impossible counts.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"no rate can be made of {hits} hits in {n} cases")
    share, z2 = hits / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if hits == 0 else middle - half
    high = 1.0 if hits == n else middle + half
    return Rate(value=share, low=low, high=high, n=n)


def bootstrap_weights(n: int, *, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Resampling weights, rows summing to 1, ``[draws, n]``: ``weights @ values`` are means.

    One set of weights serves every cell of a map, so that ratios resample numerator and
    denominator together (Efron & Tibshirani 1993, percentile bootstrap).
    """
    if n < 1:
        raise ValueError("nothing to resample")
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=draws) / n


def mean_interval(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Mean and percentile-bootstrap 95 % interval over the first axis, ``[..., 3]``.

    Args:
        values: ``[prompt, ...]``, finite.
        seed: of the resampling.
    """
    flat = values.reshape(len(values), -1)
    draws = bootstrap_weights(len(values), seed=seed) @ flat
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    out = np.stack([flat.mean(0), low, high], -1)
    return out.reshape(*values.shape[1:], 3)


def sign_flip_p(values: np.ndarray, *, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Two-sided p of a mean of 0 by random signs, ``[...]``: a paired permutation test.

    Args:
        values: one difference per prompt, ``[prompt, ...]``, NaN where a prompt has none.
        draws: sign patterns; the smallest p is ``1 / (draws + 1)``.
        seed: of the signs.

    Returns:
        1 where all differences are 0; NaN where there is none.
    """
    flat = values.reshape(len(values), -1)
    there = np.isfinite(flat)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, len(flat)))
    clean = np.where(there, flat, 0.0)
    seen = np.abs(clean.sum(0))
    # A tie within rounding counts: otherwise signs that give the same sum would seem rarer.
    more = (np.abs(signs @ clean) >= seen * (1 - 1e-9)).sum(0)
    p = np.where(there.any(0), (more + 1) / (draws + 1), np.nan)
    return p.reshape(values.shape[1:])


def ratio_interval(
    losses: np.ndarray, reference: np.ndarray, counts: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Ratio of two perplexities over the same rows, minus 1, with its interval, ``[3]``.

    Rows are resampled together (paired percentile bootstrap), so that what makes a row hard for
    both does not widen the interval. An infinite loss leaves the interval undefined (NaN).

    Args:
        losses: negative log-probability of each row, nats, ``[row]``.
        reference: the same for the other subject, ``[row]``.
        counts: tokens of each row, ``[row]``.
        seed: of the resampling.
    """
    weights = bootstrap_weights(len(counts), seed=seed)
    with np.errstate(over="ignore", invalid="ignore"):
        gap = losses - reference
        draws = np.expm1((weights @ gap) / (weights @ counts))
        value = np.expm1(gap.sum() / counts.sum())
    low, high = np.percentile(draws, [2.5, 97.5])
    return np.array([value, low, high])


def token_mean(sums: np.ndarray, counts: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Mean per token over rows of several tokens, with its 95 % interval, ``[3]``.

    The ratio estimator for clusters: total over total (Cochran 1977, Sampling Techniques, chapter
    6). Rows are independent and their tokens are not, so whole rows are resampled (percentile
    bootstrap, Efron & Tibshirani 1993). An infinite sum leaves the interval undefined (NaN).

    Args:
        sums: total of each row, ``[row]``.
        counts: tokens of each row, ``[row]``, at least 1.
        seed: of the resampling.
    """
    weights = bootstrap_weights(len(counts), seed=seed)
    if not np.isfinite(sums).all():
        return np.array([sums.sum() / counts.sum(), np.nan, np.nan])
    low, high = np.percentile((weights @ sums) / (weights @ counts), [2.5, 97.5])
    return np.array([sums.sum() / counts.sum(), low, high])


def percentiles(values: np.ndarray, which: Sequence[float]) -> np.ndarray:
    """Percentiles over the first axis, NaN left out, ``[which, ...]``.

    numpy's `nanpercentile`, which takes one column after the other, for columns with NaN alone.

    Args:
        values: ``[n, ...]``, at least one of each column is not NaN.
        which: in percent.
    """
    whole = ~np.isnan(values).any(0)
    out = np.empty((len(which), *values.shape[1:]))
    out[:, whole] = np.percentile(values[:, whole], which, axis=0)
    if not whole.all():
        out[:, ~whole] = np.nanpercentile(values[:, ~whole], which, axis=0)
    return out
