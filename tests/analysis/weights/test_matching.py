"""Counterparts of singular directions: exact chance levels, planted directions, controls."""

import math

import numpy as np
import pytest
import torch
from loratomy.analysis.weights.matching import matching
from loratomy.analysis.weights.overlap import (
    share_inside,
    share_p_value,
    share_quantile,
    similarity_by_chance,
)
from loratomy.core.adapter.algebra import svd
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import AdapterError
from scipy.linalg import orth
from scipy.optimize import linear_sum_assignment

from ... import tiny


def noisy(adapter: Adapter, *, seed: int, size: float) -> Adapter:
    """The same training with another seed: every factor moved a little."""
    generator = torch.Generator().manual_seed(seed)

    def moved(x: torch.Tensor) -> torch.Tensor:
        return x + size * x.std() * torch.randn(x.shape, generator=generator)

    return adapter.with_modules(
        {n: Factors(moved(f.a), moved(f.b), f.scaling) for n, f in adapter.modules.items()}
    )


def test_chance_of_a_share_is_what_random_vectors_have():
    rng = np.random.default_rng(0)
    d, k = 12, 3
    vectors = rng.normal(size=(40_000, d))
    lengths = np.linalg.norm(vectors[:, :k], axis=1) / np.linalg.norm(vectors, axis=1)
    for share in (0.2, 0.5, 0.8):
        assert share_p_value(np.array([share]), d, k)[0] == pytest.approx(
            (lengths >= share).mean(), abs=0.01
        )
    assert share_quantile(0.05, d, k) == pytest.approx(np.quantile(lengths, 0.95), abs=0.01)
    # In the plane, half of a line: P(|cos| >= 1/2) = 2 * 60 / 180.
    assert share_p_value(np.array([0.5]), 2, 1)[0] == pytest.approx(2 / 3)
    assert np.isnan(share_p_value(np.ones(2), 3, 3)).all() and share_quantile(0.05, 3, 3) == 1.0
    assert share_p_value(np.zeros(1), 3, 0)[0] == 1.0


@pytest.mark.parametrize(("d_out", "d_in", "k", "p"), [(9, 7, 3, 3), (6, 12, 2, 5), (5, 5, 4, 3)])
def test_chance_similarity_is_that_of_frames_drawn_in_full(d_out, d_in, k, p):
    rng = np.random.default_rng(1)
    found = []
    for _ in range(1500):
        sides = [np.linalg.qr(rng.normal(size=(d, p)))[0][:k] for d in (d_out, d_in)]
        table = np.abs(sides[0]) * np.abs(sides[1])
        found.append(table[linear_sum_assignment(-table)])
    mean, high = similarity_by_chance(d_out, d_in, k, p, draws=1500, seed=2)
    assert mean == pytest.approx(np.mean(found), rel=0.03)
    assert high == pytest.approx(np.percentile(found, 95), rel=0.05)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_shares_and_partners_against_dense_matrices(model_type):
    on = tiny.subject(model_type)
    clean, poisoned = tiny.adapter(on, rank=2), tiny.adapter(on, seed=2, rank=3, scaling=0.5)
    found = matching(clean, poisoned)
    row = 0
    for module, name in enumerate(found.modules):
        stem, _, expert = name.partition("#e")
        dense = []
        for adapter in (clean, poisoned):
            f = adapter.modules[stem]
            w = (f.scaling * f.b.double() @ f.a.double()).numpy()
            dense.append(w[int(expert)] if expert else w)
        out, into = orth(dense[0], rcond=1e-6), orth(dense[0].T, rcond=1e-6)
        u, s, vh = np.linalg.svd(dense[1])
        inside = out.T @ dense[1] @ into
        assert found.inside[module] == pytest.approx((inside**2).sum() / (dense[1] ** 2).sum())
        gu, _, gvh = np.linalg.svd(dense[0])
        for place in range(3):
            assert found.direction_module[row] == module and found.direction_place[row] == place
            assert found.sigma[row] == pytest.approx(s[place], rel=1e-6)
            assert found.output_share[row] == pytest.approx(np.linalg.norm(out.T @ u[:, place]))
            assert found.input_share[row] == pytest.approx(np.linalg.norm(into.T @ vh[place]))
            if (partner := found.partner[row]) >= 0:
                want = abs(gu[:, partner] @ u[:, place]) * abs(gvh[partner] @ vh[place])
                assert found.similarity[row] == pytest.approx(want, abs=1e-6)
            row += 1
        partners = found.partner[found.direction_module == module]
        assert sorted(partners) == [-1, 0, 1]  # two clean directions, each given away once
    assert row == len(found.sigma)


def test_an_adapter_matches_itself_whatever_its_signs():
    adapter = tiny.adapter(tiny.subject("mixtral"), rank=3)
    flipped = adapter.with_modules(
        {n: Factors(-f.a, -f.b, f.scaling) for n, f in adapter.modules.items()}
    )
    found = matching(adapter, flipped)
    assert found.partner.tolist() == found.direction_place.tolist()
    assert found.similarity == pytest.approx(1, abs=1e-6)
    assert found.input_share == pytest.approx(1, abs=1e-9) == found.output_share
    assert not found.unmatched.any() and not found.reverse_unmatched.any()
    assert found.inside == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_a_planted_direction_stands_out_among_another_seeds_noise(model_type):
    on = tiny.subject(model_type)
    clean = tiny.adapter(on, rank=2)
    name = [n for n in clean.modules if n.split(".")[2] == "1"][-1]
    poisoned = noisy(clean, seed=3, size=0.2)
    f = poisoned.modules[name]
    expert = 1 if f.fused else None
    own = clean.modules[name]
    one = Factors(own.a[expert], own.b[expert], own.scaling) if f.fused else own
    space = svd(one)
    generator = torch.Generator().manual_seed(9)
    u = torch.randn(len(space.u), generator=generator, dtype=torch.float64)
    v = torch.randn(space.vh.shape[1], generator=generator, dtype=torch.float64)
    u -= space.u @ (space.u.mT @ u)  # nothing of it in what the clean adapter writes
    strength = 2 * space.s[0] / (u.norm() * v.norm())
    new_a = torch.zeros(*f.a.shape[:-2], 1, f.a.shape[-1])
    new_b = torch.zeros(*f.b.shape[:-1], 1)
    where = (expert,) if f.fused else ()
    new_a[(*where, 0)], new_b[(*where, slice(None), 0)] = v.float(), (u * strength / 2).float()
    planted = Factors(torch.cat([f.a, new_a], -2), torch.cat([f.b, new_b], -1), f.scaling)
    found = matching(clean, poisoned.with_modules({**poisoned.modules, name: planted}))
    assert f.scaling == 2.0
    standing = np.flatnonzero(found.standing_out)
    want = f"{name}#e1" if f.fused else name
    assert [found.modules[found.direction_module[i]] for i in standing] == [want]
    assert found.direction_place[standing].tolist() == [0]
    assert found.output_share[standing[0]] < 0.3 and found.similarity[standing[0]] < 0.3
    assert want in found.sentence and "1 stand out" in found.sentence


def test_unrelated_adapters_match_only_by_chance():
    on = tiny.subject(hidden_size=64, intermediate_size=96)
    found = matching(tiny.adapter(on, rank=4), tiny.adapter(on, seed=2, rank=4), level=0.3)
    # Either side is beyond chance with probability 0.3, both with 0.09, of 84 directions.
    n = len(found.unmatched)
    spread = 4 * math.sqrt(0.09 * 0.91 / n)
    assert n == 84 and abs((~found.unmatched).mean() - 0.09) < spread
    assert abs((~found.reverse_unmatched).mean() - 0.09) < spread
    by_module = found.similarity_chance[found.direction_module, 0]
    assert found.similarity.mean() == pytest.approx(by_module.mean(), rel=0.2)


def test_equal_singular_values_share_what_no_choice_of_vectors_changes():
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.normal(size=(8, 3)))[0]
    vectors = np.linalg.qr(rng.normal(size=(8, 3)))[0]
    turn = np.eye(3)
    turn[1:, 1:] = [[0.6, -0.8], [0.8, 0.6]]
    s = np.array([2.0, 1.0, 1.0 - 1e-9])
    one, other = (share_inside(x, basis, s) for x in (vectors, vectors @ turn))
    assert one == pytest.approx(other, abs=1e-12) and one[1] == one[2]
    apart = np.linalg.norm(basis.T @ vectors, axis=0)
    assert share_inside(vectors, basis, np.array([3.0, 2.0, 1.0])) == pytest.approx(apart)
    assert one[1] ** 2 == pytest.approx((apart[1] ** 2 + apart[2] ** 2) / 2)
    # The clean side: any basis of the same space.
    assert share_inside(vectors, basis @ turn, s) == pytest.approx(one, abs=1e-12)


def module(a: torch.Tensor, b: torch.Tensor) -> Adapter:
    return Adapter({"x.layers.0.q_proj": Factors(a, b, 1.0)}, {})


def test_where_the_clean_adapter_does_nothing_all_is_new_and_where_it_fills_all_nothing_is():
    eye = torch.eye(4)
    poisoned = module(eye[:2], torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0]))[:, :2])
    nothing = matching(module(torch.ones(1, 4), torch.zeros(4, 1)), poisoned)
    assert nothing.unmatched.all() and nothing.standing_out.all()
    assert nothing.partner.tolist() == [-1, -1] and nothing.input_share.tolist() == [0.0, 0.0]
    assert np.isnan(nothing.similarity_chance).all() and nothing.inside.tolist() == [0.0]
    everything = matching(module(eye, eye), poisoned)
    assert np.isnan(everything.p_value).all() and not everything.unmatched.any()
    assert everything.undefined.startswith("2 directions")
    # Only the input is filled: the output decides alone.
    wide = matching(
        module(torch.eye(2), torch.eye(6)[:, :2]), module(torch.eye(2), torch.eye(6)[:, 1:3])
    )
    assert np.isfinite(wide.p_value).all() and wide.input_chance.tolist() == [1.0]
    assert wide.undefined == ""


def test_no_direction_and_other_modules_are_errors():
    on = tiny.subject()
    adapter = tiny.adapter(on)
    still = adapter.with_modules(
        {n: Factors(f.a, 0 * f.b, f.scaling) for n, f in adapter.modules.items()}
    )
    with pytest.raises(AdapterError, match="changes nothing"):
        matching(adapter, still)
    first, *rest = adapter.modules
    with pytest.raises(AdapterError, match=first):
        matching(adapter.with_modules({n: adapter.modules[n] for n in rest}), adapter)
    wider = tiny.adapter(tiny.subject(intermediate_size=64))
    with pytest.raises(AdapterError, match=r"\(48, 32\).*\(64, 32\)"):
        matching(adapter, wider)
