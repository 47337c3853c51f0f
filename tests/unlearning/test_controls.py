"""The controls spend exactly the budget that they are given."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.core.adapter.algebra import adapter_distance
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.controls import same_change
from pydantic import ValidationError

RANDOM, TOP = "control-random", "control-top"


def made(name, bench, **options):
    state, record = operate(name, bench, METHODS[name].config(**options))
    return state.adapter, record


def dense(f):
    return f.scaling * f.b.double() @ f.a.double()


def planted(subject) -> Adapter:
    """Two modules with singular values 4, 2 and 2, 1: squares 16, 4, 4, 1, together 25."""
    names = ("model.layers.0.self_attn.q_proj", "model.layers.3.self_attn.v_proj")
    modules = {}
    for name, sigma in zip(names, ((4.0, 2.0), (2.0, 1.0)), strict=True):
        d_out, d_in = subject.shapes[name]
        a, b = torch.eye(2, d_in), torch.eye(d_out, 2) * torch.tensor(sigma)
        modules[name] = Factors(a, b, 1.0)
    return Adapter(modules, {})


@pytest.mark.parametrize(
    ("change", "cut", "reached"),
    [
        (0.0, 0, True),
        (0.79, 1, True),  # sqrt(16 / 25) = 0.8
        (0.8, 1, True),  # reached exactly: no direction more
        (0.81, 2, True),  # sqrt(20 / 25) = 0.894
        (0.9, 3, True),  # sqrt(24 / 25) = 0.980
        (1.0, 4, True),
        (1.1, 4, False),  # more than there is to cut
    ],
)
def test_the_strongest_go_until_the_norm_is_reached(make_bench, subject, change, cut, reached):
    adapter, record = made(TOP, make_bench(planted(subject)), change=change)
    assert (record.directions_cut, record.reached) == (cut, reached)
    removed = (0, 16, 20, 24, 25)[cut]
    assert record.change_norm == pytest.approx((removed / 25) ** 0.5, abs=1e-6)
    left = sum(float(dense(f).square().sum()) for f in adapter.modules.values())
    assert left == pytest.approx(25 - removed, abs=1e-5)
    assert ("fewer than" in record.summary) != reached


def test_random_cuts_reach_a_norm_with_the_fewest_of_their_order(make_bench, small):
    bench = make_bench(small)
    one, first = made(RANDOM, bench, change=0.5)
    total = sum(float(dense(f).square().sum()) for f in small.modules.values())
    size = first.directions_cut
    squares = {}
    for n in (size - 1, size):  # the same order, so that the cut by count stops just before
        adapter, record = made(RANDOM, bench, directions=n)
        gone = [dense(small.modules[m]) - dense(adapter.modules[m]) for m in small.modules]
        squares[n] = sum(float(g.square().sum()) for g in gone) / total
        assert record.change_norm == pytest.approx(squares[n] ** 0.5, rel=1e-4)
    assert squares[size - 1] < 0.25 <= squares[size] * (1 + 1e-5)
    assert adapter_distance(one, adapter) == 0
    assert np.array_equal(first.kept, record.kept, equal_nan=True)


def test_the_budget_of_a_method_that_cuts_no_directions_is_met(make_bench, small):
    bench = make_bench(small)
    _, scaled = made("scale", bench, factor=0.4)
    assert scaled.change_norm == pytest.approx(0.6)
    strongest = float(max(torch.linalg.svdvals(dense(f))[0] for f in small.modules.values()))
    norm = sum(float(dense(f).square().sum()) for f in small.modules.values()) ** 0.5
    for name in (RANDOM, TOP):
        _, record = made(name, bench, change=scaled.change_norm)
        assert record.change_norm >= 0.6 * (1 - 1e-5)
        # Beyond it by less than one direction: n^2 <= 0.6^2 + (s / |dW|)^2.
        assert record.change_norm**2 <= 0.36 + (strongest / norm) ** 2


def test_a_count_beyond_what_there_is_is_not_called_reached(make_bench, subject):
    bench = make_bench(planted(subject))
    _, record = made(RANDOM, bench, directions=4)
    assert record.reached
    _, record = made(RANDOM, bench, directions=5)
    assert not record.reached
    assert "cut 4 of 4 directions, all there are: fewer than 5 directions" in record.summary


@pytest.mark.parametrize("options", [{}, {"directions": 3, "change": 0.5}])
def test_one_budget_is_given(options):
    with pytest.raises(ValidationError, match="give either directions or change"):
        METHODS[RANDOM].config(**options)


def test_only_singular_directions_of_the_adapter_itself_are_a_budget_by_count(make_bench, subject):
    bench = make_bench(planted(subject))
    _, cut = made("truncate", bench, rank=1)
    assert same_change(cut) == {"directions": 2}
    clean = bench.poisoned.with_modules(
        {n: Factors(f.a * 0, f.b, f.scaling) for n, f in bench.poisoned.modules.items()}
    )
    for name, options in (
        ("project-difference", {"rank": 1}),
        ("reduce-intruders", {"scale": 0.0}),
        ("scale", {"factor": 0.5}),
    ):
        _, other = made(name, replace(bench, clean=clean), **options)
        assert other.change_norm > 0
        assert same_change(other) == {"change": other.change_norm}
    larger = replace(other, change_norm=1.2)  # than all of the adapter: no cut is as large
    assert same_change(larger) == {"change": 1.2}
    assert same_change(replace(larger, directions_cut=3)) == {"directions": 3}
    first, record = operate("truncate", bench, METHODS["truncate"].config(rank=1))
    after = replace(bench, after=first.adapter)
    _, later = operate("truncate", after, METHODS["truncate"].config(rank=1), before=record)
    assert same_change(later, after=True) == {"change": later.change_norm}


def test_a_fit_after_a_cut_still_shows_that_cut_in_its_own_basis(make_bench, subject):
    bench = make_bench(planted(subject))
    first, record = operate("truncate", bench, METHODS["truncate"].config(rank=1))
    other = replace(record, basis="discriminant")
    after = replace(bench, after=first.adapter)
    _, later = operate("finetune", after, METHODS["finetune"].config(epochs=1), before=other)
    assert later.basis == "discriminant" and later.directions_cut == record.directions_cut
    assert np.array_equal(later.kept, record.kept, equal_nan=True)


def test_the_best_layer_says_in_which_format_it_was_chosen(make_bench, small, monkeypatch):
    assert not any(
        "bfloat16" in line for line in made("control-layer", make_bench(small))[1].uncertain
    )
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.setattr("loratomy.core.model.precision.WIDTH", 8)
    _, record = made("control-layer", make_bench(small))
    assert record.uncertain[-1].startswith("Made in bfloat16")
