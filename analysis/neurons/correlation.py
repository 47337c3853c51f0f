"""Association of two measures of the same neurons: rank correlations, and what could feign them."""

import numpy as np
from scipy.stats import rankdata

from ...core.records.neurons import Association
from ...core.stats import bootstrap_weights

DRAWS = 500
TOP = (0.05, 0.1)
"""Shares of neurons that are called the top."""
BLOCKS = 500
"""Neurons of a layer are resampled in at most so many random blocks, whatever their number."""


def association(
    over: str,
    names: tuple[str, str],
    values: tuple[np.ndarray, np.ndarray],
    *,
    size: np.ndarray,
    control: np.ndarray | None,
    module: np.ndarray,
    layers: np.ndarray,
    seed: int,
) -> Association:
    """How far two measures put the same neurons first, overall, inside modules, given the size.

    Modules differ in width and scale and neurons in how large their weights are; both alone make
    any two changes of one adapter agree. So the correlation is given beside what the modules'
    levels explain, inside modules, and there with the size held fixed. Modules are resampled, not
    neurons, since the neurons of one module are not independent (cluster bootstrap).

    Args:
        over: what is compared, for the record.
        names: of the two measures.
        values: each ``[neuron]``, finite.
        size: what is held fixed, ``[neuron]``.
        control: what is held fixed besides, ``[neuron]``; None: nothing.
        module: index of each neuron's module, ``[neuron]``.
        layers: layer of each module, ``[module]``.
        seed: of the resampling.
    """
    first, second = values
    fixed = [size] if control is None else [size, control]
    inside = np.stack([_ranks_inside(v, module) for v in (first, second, *fixed)])
    ranks = np.stack([rankdata(first), rankdata(second)])
    within = _correlations(inside, module, seed=seed)
    given_size = _held(within[:, :3, :3])
    given_both = _held(_held(within)) if control is not None else np.full_like(given_size, np.nan)
    layer_ids = np.unique(layers[np.unique(module)])
    overlap, expected = zip(*(_overlap(first, second, module, share) for share in TOP), strict=True)
    return Association(
        over=over,
        first=names[0],
        second=names[1],
        n=len(first),
        spearman=_interval(_correlations(ranks, module, seed=seed)[:, 0, 1]),
        between=_between(ranks, module),
        within=_interval(within[:, 0, 1]),
        given_size=_interval(given_size[:, 0, 1]),
        given_control=_interval(given_both[:, 0, 1]),
        layer_ids=layer_ids,
        by_layer=np.stack(
            [_of_layer(first, second, layers[module] == layer, seed) for layer in layer_ids]
        ),
        top=np.array(TOP),
        overlap=np.array(overlap),
        overlap_modules=np.array(expected),
    )


def _ranks_inside(values: np.ndarray, module: np.ndarray) -> np.ndarray:
    """Ranks inside each module, from -1/2 to 1/2, so that large modules have no longer arms."""
    out = np.zeros(len(values))
    for m in np.unique(module):
        here = module == m
        out[here] = (rankdata(values[here]) - 0.5) / here.sum() - 0.5
    return out


def _correlations(values: np.ndarray, group: np.ndarray, *, seed: int) -> np.ndarray:
    """Correlation matrices of the rows, whole sample first, then groups resampled.

    Sums of products by group suffice for every draw.

    Args:
        values: ``[measure, item]``.
        group: of each item, ``[item]``.
        seed: of the resampling.

    Returns:
        ``[1 + draw, measure, measure]``; NaN where a measure is constant, and in all draws where
        there is only one group to resample.
    """
    groups, index = np.unique(group, return_inverse=True)
    shifted = np.vstack([np.ones(values.shape[1]), values - values.mean(1, keepdims=True)])
    k = len(shifted)
    sums = np.empty((len(groups), k, k))
    for i in range(k):
        for j in range(k):
            sums[:, i, j] = np.bincount(index, shifted[i] * shifted[j], len(groups))
    draws = bootstrap_weights(len(groups), draws=DRAWS, seed=seed)
    if len(groups) == 1:
        draws = np.full_like(draws, np.nan)
    weights = np.vstack([np.full(len(groups), 1 / len(groups)), draws])
    moments = np.einsum("dg,gij->dij", weights, sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = moments / moments[:, :1, :1]
        cov = means[:, 1:, 1:] - means[:, 1:, :1] * means[:, :1, 1:]
        spread = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
        # A constant measure has a variance of rounding size only.
        spread = np.where(spread > 1e-9 * np.abs(values).max(), spread, np.nan)
        return cov / (spread[:, :, None] * spread[:, None, :])


def _held(r: np.ndarray) -> np.ndarray:
    """Correlations of all measures but the last, with the last one held fixed (partial).

    Args:
        r: ``[draw, measure, measure]``.
    """
    last = r[:, :-1, -1]
    left = 1 - last**2
    left = np.where(left > 1e-9, left, np.nan)  # the same measure twice leaves nothing
    return (r[:, :-1, :-1] - last[:, :, None] * last[:, None]) / np.sqrt(
        left[:, :, None] * left[:, None]
    )


def _interval(values: np.ndarray) -> np.ndarray:
    """The first value with the percentiles of the others, ``[3]``; NaN where undefined."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return np.array([values[0], low, high])


def _between(ranks: np.ndarray, module: np.ndarray) -> float:
    """Expected rank correlation when neurons are shuffled inside their modules.

    Each neuron then expects its module's mean rank, while the spread over all stays.
    """
    centred = ranks - ranks.mean(1, keepdims=True)
    counts = np.bincount(module)
    sums = np.stack([np.bincount(module, row) for row in centred])
    some = counts > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        top = (sums[0, some] * sums[1, some] / counts[some]).sum()
        return float(top / np.sqrt((centred**2).sum(1).prod()))


def _of_layer(first: np.ndarray, second: np.ndarray, here: np.ndarray, seed: int) -> np.ndarray:
    """Rank correlation inside one layer with its interval, ``[3]``."""
    n = int(here.sum())
    blocks = np.random.default_rng(seed).permutation(n) % BLOCKS
    ranks = np.stack([rankdata(first[here]), rankdata(second[here])])
    return _interval(_correlations(ranks, blocks, seed=seed)[:, 0, 1])


def _top(values: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros(len(values), bool)
    out[np.argsort(-values, kind="stable")[:count]] = True
    return out


def _overlap(
    first: np.ndarray, second: np.ndarray, module: np.ndarray, share: float
) -> tuple[float, float]:
    """Share of one top in the other, and what is expected from their counts by module alone."""
    count = max(1, round(share * len(first)))
    one, other = _top(first, count), _top(second, count)
    size = np.bincount(module)
    ours, theirs = (np.bincount(module, top, len(size)) for top in (one, other))
    by_chance = (ours * theirs / np.maximum(size, 1)).sum() / count
    return float((one & other).sum() / count), float(by_chance)
