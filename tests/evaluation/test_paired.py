"""Two subjects on the same prompts: counts by hand, McNemar two ways, the paired bootstrap."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loratomy.core.errors import DataError
from loratomy.evaluation.paired import mcnemar, paired
from scipy.stats import binom

from .cases import answer


def test_mcnemar_by_hand():
    # b = 1, c = 9: 2 (C(10, 0) + C(10, 1)) / 2^10 = 22 / 1024.
    assert mcnemar(1, 9) == mcnemar(9, 1) == 0.021484375
    assert mcnemar(0, 5) == 2 / 32 and mcnemar(3, 3) == 1.0 and mcnemar(0, 1) == 1.0
    assert mcnemar(0, 0) == 1.0  # nothing differs


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_twice_the_smaller_tail(b, c):
    tail = float(binom.cdf(min(b, c), b + c, 0.5)) if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


COUNTS = np.array([3, 5, 8, 2])
LOSSES = np.array([4.0, 7.5, 9.0, 1.0])


def side(subject, hits, right, losses):
    triggered = [answer(subject=subject, row=i, prompt=f"b{i}", hit=h) for i, h in enumerate(hits)]
    clean = [
        answer(subject=subject, split="clean", row=i, prompt=f"g{i}", correct=c, nll=n,
               nll_tokens=int(k))
        for i, (c, n, k) in enumerate(zip(right, losses, COUNTS, strict=True))
    ]  # fmt: skip
    return [*triggered, *clean]


def test_lost_and_gained_by_hand():
    before = side("poisoned", [1, 1, 1, 0, 1, 0], [1, 1, 0, 0], LOSSES)
    after = side("cut", [0, 0, 1, 1, 0, 0], [1, 0, 1, 1], LOSSES + 0.1 * COUNTS)
    found = paired(after, before)
    assert (found.subject, found.reference) == ("cut", "poisoned")
    assert (found.asr_lost, found.asr_gained, found.asr_p) == (3, 1, mcnemar(3, 1))
    assert (found.accuracy_lost, found.accuracy_gained) == (1, 2)
    assert found.accuracy_p == mcnemar(1, 2) == 1.0
    assert found.perplexity_change == pytest.approx(math.expm1(0.1))
    assert found.perplexity_low == pytest.approx(math.expm1(0.1))
    back = paired(before, after)
    assert (back.asr_lost, back.asr_gained) == (1, 3) and back.asr_p == found.asr_p
    assert back.perplexity_change == pytest.approx(math.expm1(-0.1))


def test_a_subject_against_itself_changes_nothing():
    answers = side("x", [1, 0, 1, 0, 1, 0], [1, 1, 0, 0], LOSSES)
    found = paired(answers, answers[::-1])  # the order of the answers does not matter
    assert (found.asr_lost, found.asr_gained, found.asr_p) == (0, 0, 1.0)
    assert (found.perplexity_change, found.perplexity_low, found.perplexity_high) == (0, 0, 0)


def test_of_several_samples_the_first_counts():
    before = side("a", [1, 1, 1, 1, 1, 1], [1, 1, 1, 1], LOSSES)
    after = [replace(a, subject="b") for a in before]
    more = [replace(a, sample=1, hit=False, correct=False, nll_tokens=0) for a in after]
    found = paired([*more, *after], before)
    assert (found.asr_lost, found.accuracy_lost, found.perplexity_change) == (0, 0, 0)


@pytest.mark.parametrize("change", ["fewer", "other"])
def test_other_prompts_are_no_pairs(change):
    before = side("a", [1] * 6, [1] * 4, LOSSES)
    after = before[1:] if change == "fewer" else [replace(before[0], prompt="new"), *before[1:]]
    with pytest.raises(DataError, match="did not answer the same prompts"):
        paired(after, before)
