"""Agreement of two profiles of different length: rank correlation at equal depth, and its chance.

Runs are compared at the layers of the one that has fewer, the finer one interpolated linearly and
never beyond its ends. Neighbouring layers are alike, so shuffling them would call unrelated smooth
profiles alike; the p-value flips the signs of their cosine components instead, which keeps the
smoothness (Wagner & Dray 2015, Moran spectral randomisation, on a line of layers).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.fft import dct
from scipy.stats import false_discovery_control, permutation_test, rankdata

from ...core.records.across import Agreement, Profile

FEWEST = 4
"""Points of a correlation; with three, no correlation differs from chance."""
DRAWS = 9999
"""Random rearrangements where not all can be tried."""

_PERMUTATION_TEST: Any = permutation_test  # scipy's own annotations refuse its documented use
_DCT: Any = dct


def agreement(one: Profile, other: Profile, first: str, second: str, *, seed: int) -> Agreement:
    """Rank correlation of a profile in two runs, `q` not yet filled.

    Args:
        one: the profile in one run.
        other: the same profile in the other.
        first: name of the one.
        second: name of the other.
        seed: of the rearrangements.
    """
    x, y = at_common_depths(one, other)
    rho, p, free, undefined = math.nan, math.nan, math.nan, ""
    if len(x) < FEWEST:
        undefined = f"points at common depth: {len(x)}, too few"
    elif np.ptp(x) == 0 or np.ptp(y) == 0:
        undefined = "one of the profiles is the same in every layer"
    else:
        a, b = ranks(x), ranks(y)
        rho = float(a @ b / math.sqrt((a @ a) * (b @ b)))
        p, free = smooth_p(a, b, seed=seed), shuffled_p(a, b, seed=seed)
    return Agreement(
        key=one.key, first=first, second=second, n=len(x), rho=rho, p=p, p_free=free, q=math.nan,
        undefined=undefined,
    )  # fmt: skip


def at_common_depths(one: Profile, other: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Both profiles at the depths of the one with fewer layers, ``[point]`` each, in their order.

    The other is interpolated between neighbouring layers; points beyond its ends, or beside one of
    its undefined layers, are left out.
    """
    swapped = len(other.depth) < len(one.depth)
    few, many = (other, one) if swapped else (one, other)
    there = np.interp(few.depth, many.depth, many.value, left=np.nan, right=np.nan)
    both = np.isfinite(few.value) & np.isfinite(there)
    x, y = few.value[both], there[both]
    return (y, x) if swapped else (x, y)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks less their mean, equal values sharing theirs, ``[point]``."""
    return rankdata(values) - (len(values) + 1) / 2


def smooth_p(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p of a correlation against profiles as smooth as `b`, its components' signs free.

    All sign patterns of the cosine components are tried up to 14 layers, `DRAWS` random ones
    beyond. Both are ranks less their mean, ``[point]``.
    """
    parts = np.multiply(*(_DCT(x, norm="ortho")[1:] for x in (a, b)))  # these add up to a @ b
    return _p((parts,), lambda x, axis: np.abs(x.sum(axis)), "samples", seed)


def shuffled_p(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided permutation p of a correlation, as if layers could change places freely.

    All orders are tried up to 7 layers, `DRAWS` random ones beyond.
    """
    return _p((b,), lambda x, axis: np.abs((x * a).sum(axis)), "pairings", seed)


def _p(data: Any, magnitude: Callable[..., Any], kind: Any, seed: int) -> float:
    """Share of rearrangements with a magnitude at least as large as the one seen."""
    found = _PERMUTATION_TEST(
        data, magnitude, permutation_type=kind, alternative="greater", vectorized=True,
        n_resamples=DRAWS, random_state=seed,
    )  # fmt: skip
    return float(found.pvalue)


def corrected(items: Sequence[Agreement]) -> tuple[Agreement, ...]:
    """With `q`, the false discovery rate at which each would be kept."""
    q = np.array([item.p for item in items])
    defined = np.isfinite(q)
    q[defined] = false_discovery_control(q[defined])
    return tuple(replace(item, q=float(v)) for item, v in zip(items, q, strict=True))
