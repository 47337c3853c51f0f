"""Rank correlations against scipy, regression residuals and permutations."""

import numpy as np
import pytest
from loratomy.analysis.neurons.correlation import association
from scipy.stats import rankdata, spearmanr

MODULES, WIDTH = 12, 60
MODULE = np.repeat(np.arange(MODULES), WIDTH)
LAYERS = np.repeat([0, 1, -1], MODULES // 3)


def made(seed: int = 0, *, shared: float = 0.5, by_size: float = 0.0, by_module: float = 0.0):
    """Two measures with a common part, a common size, and common levels of the modules."""
    rng = np.random.default_rng(seed)
    common, size = rng.normal(size=(2, len(MODULE)))
    level = rng.normal(size=MODULES)[MODULE]
    one, other = (
        rng.normal(size=len(MODULE)) + shared * common + by_size * size + by_module * level
        for _ in range(2)
    )
    return one, other, size, common


def compared(one, other, size, control=None, module=MODULE, layers=LAYERS):
    return association(
        "neurons", ("clean", "poison"), (one, other), size=size, control=control,
        module=module, layers=layers, seed=0,
    )  # fmt: skip


def inside(values):
    return np.concatenate([rankdata(values[m == MODULE]) for m in range(MODULES)])


def residual(values, *others):
    design = np.stack([np.ones(len(values)), *others], 1)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


def test_values_are_scipys_and_those_of_regression_residuals():
    one, other, size, common = made(shared=1.0, by_size=0.7, by_module=0.5)
    found = compared(one, other, size, common)
    assert found.spearman[0] == pytest.approx(spearmanr(one, other).statistic)
    ranks = [inside(v) for v in (one, other, size, common)]
    assert found.within[0] == pytest.approx(np.corrcoef(*ranks[:2])[0, 1])
    left = [residual(r, ranks[2]) for r in ranks[:2]]
    assert found.given_size[0] == pytest.approx(np.corrcoef(*left)[0, 1])
    left = [residual(r, ranks[2], ranks[3]) for r in ranks[:2]]
    assert found.given_control[0] == pytest.approx(np.corrcoef(*left)[0, 1])
    assert list(found.layer_ids) == [-1, 0, 1]
    for layer, row in zip(found.layer_ids, found.by_layer, strict=True):
        here = LAYERS[MODULE] == layer
        assert row[0] == pytest.approx(spearmanr(one[here], other[here]).statistic)
        assert row[1] < row[0] < row[2]


def test_what_the_size_or_the_modules_feign_is_not_counted():
    one, other, size, _ = made(shared=0.0, by_size=2.0)
    found = compared(one, other, size)
    assert found.within[1] > 0.6 and found.given_size[1] < 0 < found.given_size[2]
    assert np.isnan(found.given_control).all()
    one, other, size, _ = made(shared=0.0, by_module=3.0)
    found = compared(one, other, size)
    assert found.spearman[0] > 0.7 and abs(found.within[0]) < 0.1
    assert found.between == pytest.approx(found.spearman[0], abs=0.05)
    assert found.overlap_modules[1] > 1.5 * found.top[1]
    assert found.overlap[1] == pytest.approx(found.overlap_modules[1], abs=0.1)


def test_expectations_by_module_are_the_means_over_permutations():
    one, other, size, _ = made(shared=1.0, by_module=1.0)
    found = compared(one, other, size)
    rng, rho, overlap = np.random.default_rng(1), [], []
    count = round(0.1 * len(one))
    top = set(np.argsort(-one)[:count])
    for _ in range(300):
        shuffled = np.concatenate([rng.permutation(other[m == MODULE]) for m in range(MODULES)])
        rho.append(spearmanr(one, shuffled).statistic)
        overlap.append(len(top & set(np.argsort(-shuffled)[:count])) / count)
    assert found.between == pytest.approx(np.mean(rho), abs=4 * np.std(rho) / 300**0.5)
    expected = pytest.approx(np.mean(overlap), abs=4 * np.std(overlap) / 300**0.5)
    assert found.overlap_modules[1] == expected


def test_overlap_by_hand():
    # 20 neurons: the top 5 % is 1, the top 10 % are 2; one of the two is common.
    one = np.arange(20.0)
    other = np.arange(20.0)
    other[[18, 3]] = other[[3, 18]]
    found = compared(one, other, np.ones(20), module=np.arange(20) // 10, layers=np.zeros(2, int))
    assert found.overlap.tolist() == [1.0, 0.5]
    # One's top 2 (18, 19) lie in the second module of 10, of the other's (3, 19) one does:
    # 2 x 1 / 10 common ones expected, of 2.
    assert found.overlap_modules[1] == pytest.approx(0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # Common part 1 beside noise 1: Pearson .5, Spearman 6/pi asin(.25) = .4826.
    truth = 6 / np.pi * np.arcsin(0.25)
    hits = 0
    for seed in range(40):
        one, other, size, _ = made(seed, shared=1.0)
        _, low, high = compared(one, other, size).spearman
        hits += low <= truth <= high
    assert hits >= 31  # 95 % would be 38; a dozen clusters make intervals a little too narrow


def test_undefined_is_nan():
    one, other, size, _ = made()
    flat = compared(np.ones_like(one), other, size)
    assert np.isnan(flat.spearman).all() and np.isnan(flat.within).all()
    single = compared(one, other, size, module=np.zeros(len(one), int), layers=np.zeros(1, int))
    assert np.isfinite(single.spearman[0]) and np.isnan(single.spearman[1:]).all()
    assert np.isnan(compared(one, other, one).given_size).all()  # held fixed, nothing is left
