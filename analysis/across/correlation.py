"""Agreement of two profiles of different length: rank correlation at equal depth, and its chance.

Runs are compared at the layers of the one that has fewer, the finer one interpolated linearly and
never beyond its ends. Neighbouring layers are alike, so shuffling them would call unrelated smooth
profiles alike; the p-value flips the signs of their cosine components instead, which keeps the
smoothness (Wagner & Dray 2015, Moran spectral randomisation, on a line of layers).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product

import numpy as np

from ...core.records.across import Agreement, Profile

FEWEST = 4
"""Points of a correlation; of three, none can be told from chance."""
DRAWS = 9999
"""Random rearrangements where not all can be tried."""


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
    _, where, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count - 1) / 2
    return middle[where] - (len(values) + 1) / 2


def smooth_p(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p of a correlation against profiles as smooth as `b`, its components' signs free.

    All sign patterns of the cosine components are tried up to 13 layers, `DRAWS` random ones
    beyond. Both are ranks less their mean, ``[point]``.
    """
    n = len(a)
    wave = np.cos(np.pi * np.arange(1, n)[:, None] * (np.arange(n) + 0.5) / n)
    parts = (wave @ a) * (wave @ b)  # up to one factor these add up to a @ b
    if n <= 13:
        signs = np.array(list(product((1.0, -1.0), repeat=n - 2)))
        signs = np.column_stack([np.ones(len(signs)), signs])  # -s gives the same magnitude as s
        return _share_as_large(signs @ parts, float(parts.sum()), exact=True)
    signs = np.random.default_rng(seed).choice([1.0, -1.0], (DRAWS, n - 1))
    return _share_as_large(signs @ parts, float(parts.sum()), exact=False)


def shuffled_p(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided permutation p of a correlation, as if layers could change places freely.

    All orders are tried up to 7 layers, `DRAWS` random ones beyond.
    """
    if len(a) <= 7:
        return _share_as_large(np.array(list(permutations(b))) @ a, float(a @ b), exact=True)
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(b, (DRAWS, 1)), axis=1)
    return _share_as_large(orders @ a, float(a @ b), exact=False)


def _share_as_large(found: np.ndarray, seen: float, *, exact: bool) -> float:
    """Share of magnitudes at least as large; a random sample counts what was seen as well."""
    hits = int((np.abs(found) >= abs(seen) * (1 - 1e-9)).sum())
    return hits / len(found) if exact else (hits + 1) / (len(found) + 1)


def corrected(items: Sequence[Agreement]) -> tuple[Agreement, ...]:
    """With `q`, the false discovery rate at which each would be kept."""
    p = np.array([item.p for item in items])
    defined = np.flatnonzero(np.isfinite(p))
    order = defined[np.argsort(p[defined])]
    q = np.full(len(p), np.nan)
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return tuple(replace(item, q=float(v)) for item, v in zip(items, q, strict=True))
