"""Batches of patched runs: all of them once, within memory, at the least cost of any split."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loratomy.analysis.patching.engine.batching import (
    CALL,
    MemoryBudget,
    Sizes,
    batches,
    budget,
    sizes_of,
)
from loratomy.core.errors import LoratomyError

from .... import tiny

SIZES = Sizes(item=4, d_model=64, d_mlp=128, d_kv=64, heads=4, d_vocab=100)
WIDTH = 12


def memory(size: int) -> MemoryBudget:
    return MemoryBudget(size, SIZES, "cpu")


def cost(parts, begins, depths, calls):
    return sum(depths[part].sum() * (WIDTH - begins[part].min()) + calls for part in parts)


@given(
    st.lists(st.tuples(st.integers(0, WIDTH - 1), st.integers(1, 6)), min_size=1, max_size=40),
    st.integers(20, 26),
)
def test_every_run_comes_once_and_fits(cells, power):
    begins, depths = (np.array(c) for c in zip(*cells, strict=True))
    limit, seen = memory(2**power), []
    for begin, picked in batches(begins, depths, width=WIDTH, needed=2, memory=limit):
        assert (begins[picked] >= begin).all()
        assert (np.diff(depths[picked]) <= 0).all()  # those that begin first come first
        assert len(picked) * limit.of_run(begin, WIDTH, 2) <= limit.size // 2
        seen += picked.tolist()
    assert sorted(seen) == list(range(len(cells)))


def test_no_split_into_runs_of_neighbouring_positions_costs_less():
    rng = np.random.default_rng(0)
    begins, depths = rng.integers(0, WIDTH, 60), rng.integers(1, 6, 60)
    limit = memory(2**32)
    found = [p for _, p in batches(begins, depths, width=WIDTH, needed=1, memory=limit)]
    calls = CALL["cpu"] / SIZES.operations * depths.max()
    starts = np.unique(begins)
    every = []
    for count in range(len(starts)):
        for cuts in combinations(starts[1:].tolist(), count):
            edges = [0, *cuts, WIDTH]
            parts = [np.flatnonzero((begins >= a) & (begins < b)) for a, b in pairwise(edges)]
            every.append(cost(parts, begins, depths, calls))
    assert cost(found, begins, depths, calls) == pytest.approx(min(every))
    assert len(every) == 2 ** (len(starts) - 1)


def test_too_little_memory_is_said_with_what_is_needed():
    with pytest.raises(LoratomyError, match=r"needs .* GiB.*memory=GIB"):
        list(batches(np.array([0]), np.array([1]), width=WIDTH, needed=1, memory=memory(1000)))
    with pytest.raises(LoratomyError, match="fewer sites"):
        memory(1000).prompts(WIDTH, 4, 3)


def test_the_sizes_are_those_of_the_model():
    on = tiny.subject("mixtral")
    found = sizes_of(on)
    assert (found.item, found.d_model, found.d_mlp) == (4, 32, 2 * 48)  # two experts of four
    assert (found.d_kv, found.heads, found.d_vocab) == (2 * 2 * 8, 4, len(tiny.tokenizer()))
    assert budget(on, 0.5).size == 2**29
    assert 0 < budget(on, None).size < 2**45
