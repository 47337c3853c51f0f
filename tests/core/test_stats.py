import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loratomy.core.stats import (
    bootstrap_weights,
    mean_interval,
    percentiles,
    ratio_interval,
    sign_flip_p,
    token_mean,
    wilson,
)


def test_wilson_by_hand():
    # 8 of 10, z = 1.96: z^2 = 3.8415, z^2 / n = 0.38415.
    # middle = (0.8 + 0.192073) / 1.384146 = 0.716740
    # half = 1.959964 / 1.384146 * sqrt(0.016 + 0.009604) = 1.416010 * 0.160011 = 0.226577
    rate = wilson(8, 10)
    assert (rate.value, rate.n) == (0.8, 10)
    assert rate.low == pytest.approx(0.716740 - 0.226577, abs=1e-5)
    assert rate.high == pytest.approx(0.716740 + 0.226577, abs=1e-5)


def test_wilson_at_the_ends():
    # None of n: high = z^2 / (n + z^2); with n = 100: 3.841459 / 103.841459 = 0.036994.
    none, all_ = wilson(0, 100), wilson(100, 100)
    assert none.low == 0.0 and none.high == pytest.approx(0.036994, abs=1e-6)
    assert all_.high == 1.0 and all_.low == pytest.approx(1 - 0.036994, abs=1e-6)


@given(st.integers(1, 10_000), st.data())
def test_wilson_bounds_solve_their_equation(n, data):
    hits = data.draw(st.integers(0, n))
    rate = wilson(hits, n)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    for end in (rate.low, rate.high):  # |share - p| = z sqrt(p (1 - p) / n) at both ends
        if 0 < end < 1:
            z = abs(rate.value - end) / math.sqrt(end * (1 - end) / n)
            assert z == pytest.approx(1.959963984540054, rel=1e-6)
    mirror = wilson(n - hits, n)
    assert mirror.low == pytest.approx(1 - rate.high, abs=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (1, 0), (-1, 4), (5, 4)])
def test_wilson_refuses_impossible_counts(hits, n):
    with pytest.raises(ValueError, match=f"{hits} hits in {n} cases"):
        wilson(hits, n)


def test_bootstrap_weights_are_means_and_repeat():
    weights = bootstrap_weights(7, draws=500, seed=3)
    assert weights.shape == (500, 7)
    assert np.allclose(weights.sum(1), 1) and np.allclose(weights * 7, np.round(weights * 7))
    assert np.array_equal(weights, bootstrap_weights(7, draws=500, seed=3))
    assert not np.array_equal(weights, bootstrap_weights(7, draws=500, seed=4))
    with pytest.raises(ValueError, match="nothing"):
        bootstrap_weights(0)


def test_mean_interval_against_the_normal_one_and_by_hand():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20  # the normal interval of the mean, n = 400
    assert low == pytest.approx(mean - half, abs=0.15 * half)
    assert high == pytest.approx(mean + half, abs=0.15 * half)
    constant = mean_interval(np.full((5, 2, 3), 4.0))
    assert constant.shape == (2, 3, 3) and np.allclose(constant, 4.0)
    # Two cells of two prompts: cell means are (1 + 3) / 2 = 2 and (10 + 20) / 2 = 15.
    two = mean_interval(np.array([[1.0, 10.0], [3.0, 20.0]]))
    assert two[:, 0].tolist() == [2.0, 15.0]
    assert two[:, 1].tolist() == [1.0, 10.0] and two[:, 2].tolist() == [3.0, 20.0]


def test_wilson_of_shares_of_cases():
    # 1.5 of 3: centred, half = z / (1 + z^2 / 3) sqrt(0.25 / 3 + z^2 / 36); z^2 = 3.841459:
    # 1.959964 / 2.280486 * sqrt(0.083333 + 0.106707) = 0.859450 * 0.435936 = 0.374665.
    rate = wilson(1.5, 3)
    assert (rate.value, rate.n) == (0.5, 3)
    assert rate.low == pytest.approx(0.5 - 0.374665, abs=1e-5)
    assert rate.high == pytest.approx(0.5 + 0.374665, abs=1e-5)


COUNTS = np.array([3, 5, 8, 2])
LOSSES = np.array([4.0, 7.5, 9.0, 1.0])


def test_the_paired_interval_of_identical_losses_is_nothing():
    assert ratio_interval(LOSSES, LOSSES, COUNTS).tolist() == [0.0, 0.0, 0.0]


def test_a_constant_shift_is_its_exact_ratio_in_every_resample():
    # Every token 0.1 nats dearer: perplexity times e^0.1 whatever rows are drawn.
    found = ratio_interval(LOSSES + 0.1 * COUNTS, LOSSES, COUNTS, seed=3)
    assert found == pytest.approx([math.expm1(0.1)] * 3, rel=1e-12)


def test_the_ratio_is_that_of_the_two_perplexities_and_pairing_narrows_it():
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 20, 60)
    hard = rng.normal(3, 1.5, 60) * counts  # what makes a row hard for both
    other = hard + rng.normal(0.05, 0.02, 60) * counts
    value, low, high = ratio_interval(other, hard, counts)
    want = math.exp(other.sum() / counts.sum()) / math.exp(hard.sum() / counts.sum()) - 1
    assert value == pytest.approx(want, rel=1e-9) and low < value < high
    # Unpaired, the rows' own spread would swamp a change of 5 %.
    draws = rng.integers(0, 60, (2, 500, 60))
    one = other[draws[0]].sum(1) / counts[draws[0]].sum(1)
    two = hard[draws[1]].sum(1) / counts[draws[1]].sum(1)
    wide = np.percentile(np.expm1(one - two), [2.5, 97.5])
    assert (high - low) < 0.1 * (wide[1] - wide[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_subject_that_finds_a_reference_impossible_is_infinitely_dearer():
    losses = LOSSES.copy()
    losses[1] = math.inf
    value, low, high = ratio_interval(losses, LOSSES, COUNTS)
    assert value == math.inf and not math.isfinite(low) and not math.isfinite(high)


def test_a_mean_per_token_is_total_over_total_and_resamples_rows():
    # (4 + 7.5 + 9 + 1) / (3 + 5 + 8 + 2) = 21.5 / 18; the mean of the rows' means is another.
    value, low, high = token_mean(LOSSES, COUNTS)
    assert value == pytest.approx(21.5 / 18) and low < value < high
    # The delta method (Cochran 1977, 6.4): var = sum (s - r c)^2 / (n - 1) n / (sum c)^2.
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 20, 400)
    sums = rng.gamma(2.0, 0.05, 400) * counts
    value, low, high = token_mean(sums, counts)
    spread = math.sqrt(np.square(sums - value * counts).sum() / 399 * 400) / counts.sum()
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    # Tokens of a row are no independent cases: with all rows twice the interval is as 1 / sqrt 2.
    twice = token_mean(np.tile(sums, 2), np.tile(counts, 2))
    assert (twice[2] - twice[1]) / (high - low) == pytest.approx(0.5**0.5, rel=0.1)


def test_a_mean_per_token_of_nothing_but_zeros_and_of_infinity():
    assert token_mean(np.zeros(3), np.array([1, 2, 3])).tolist() == [0.0, 0.0, 0.0]
    value, low, high = token_mean(np.array([1.0, math.inf]), np.array([1, 2]))
    assert value == math.inf and math.isnan(low) and math.isnan(high)
    with pytest.raises(ValueError, match="nothing to resample"):
        token_mean(np.empty(0), np.empty(0))


def test_sign_flips_against_every_pattern_of_signs():
    rng = np.random.default_rng(0)
    values = rng.normal(0.6, 1, (9, 3))
    signs = np.array(list(product([-1, 1], repeat=9)))
    exact = (np.abs(signs @ values) >= np.abs(values.sum(0)) - 1e-12).mean(0)
    assert np.allclose(sign_flip_p(values, draws=20000), exact, atol=0.01)


def test_sign_flips_where_nothing_or_nobody_is():
    values = np.array([[0.0, 1.0, np.nan], [0.0, 1.0, np.nan], [0.0, np.nan, np.nan]])
    p = sign_flip_p(values, draws=4000)
    assert p[0] == 1.0  # no difference at all
    assert p[1] == pytest.approx(0.5, abs=0.03)  # two equal differences: 2 of 4 patterns
    assert np.isnan(p[2])


def test_percentiles_are_numpys_with_and_without_gaps():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(9, 4, 5))
    values[rng.random(values.shape) < 0.1] = np.nan
    values[:, 0, 0] = [np.nan] * 8 + [3.0]
    found = percentiles(values, [10, 90])
    assert found.shape == (2, 4, 5) and np.isnan(values).any() and found[0, 0, 0] == 3.0
    assert np.array_equal(found, np.nanpercentile(values, [10, 90], axis=0))
