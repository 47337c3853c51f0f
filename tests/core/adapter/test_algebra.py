"""Factor algebra against dense float64 linear algebra, on every shape that adapters come in."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loratomy.core.adapter.algebra import (
    adapter_distance,
    adapter_norm,
    from_svd,
    norm,
    principal_angles,
    scale_directions,
    spectrum,
    stack,
    svd,
    svd_form,
)
from loratomy.core.adapter.factors import Adapter, Factors
from scipy.linalg import subspace_angles


@st.composite
def factors(draw, *, shape=None):
    """Random factors: linear or fused, tall or wide, of full or lower rank, some of them zero."""
    experts, d_out, d_in = shape or (
        draw(st.sampled_from([None, 1, 3])),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
    )
    rank, true_rank = draw(st.integers(1, 6)), draw(st.integers(0, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    lead = () if experts is None else (experts,)
    a = torch.randn(*lead, rank, d_in, generator=generator)
    if true_rank < rank:  # repeat rows: A loses rank without becoming zero
        a = a[..., [i % max(true_rank, 1) for i in range(rank)], :] * min(true_rank, 1)
    b = torch.randn(*lead, d_out, rank, generator=generator)
    return Factors(a, b, draw(st.sampled_from([0.25, 1.0, 2.0, 32 / math.sqrt(7)])))


def dense(f: Factors) -> torch.Tensor:
    return f.scaling * (f.b.double() @ f.a.double())


def floor(f: Factors) -> float:
    """What float32 factors cannot resolve, twice over: smaller singular values read as zero."""
    size = (f.a.double().norm(dim=-1) * f.b.double().norm(dim=-2)).sum(-1).max()
    return 2e-7 * max(1.0, float(size) * f.scaling)


def close(one: torch.Tensor, other: torch.Tensor, *, to: float = 1e-10) -> bool:
    scale = max(1.0, float(other.abs().max()) if other.numel() else 1.0)
    gap = float((one.double() - other.double()).abs().max())
    return one.shape == other.shape and gap <= to * scale


@settings(max_examples=60, deadline=None)
@given(factors())
def test_svd_is_that_of_the_dense_matrix(f):
    found, w = svd(f), dense(f)
    k = min(f.rank, *w.shape[-2:])
    assert close(found.s, torch.linalg.svdvals(w)[..., :k], to=floor(f))
    assert close(found.u * found.s[..., None, :] @ found.vh, w, to=floor(f))
    eye = torch.eye(k, dtype=torch.float64)
    assert close(found.u.mT @ found.u, eye.expand(*w.shape[:-2], k, k))
    assert close(found.vh @ found.vh.mT, eye.expand(*w.shape[:-2], k, k))
    assert (found.s.diff(dim=-1) <= 0).all()


@settings(max_examples=60, deadline=None)
@given(factors())
def test_spectrum_norm_and_rank_agree_with_the_dense_matrix(f):
    w, s = dense(f), spectrum(f)
    assert close(s, svd(f).s)
    assert close(norm(f), torch.linalg.matrix_norm(w), to=1e-7)
    sure, possible = (torch.linalg.matrix_rank(w, atol=a, rtol=0) for a in (floor(f), 1e-12))
    assert (sure <= (s > 0).sum(-1)).all() and ((s > 0).sum(-1) <= possible).all()


@settings(max_examples=40, deadline=None)
@given(factors())
def test_singular_directions_keep_the_change(f):
    again = from_svd(svd(f), scaling=f.scaling)
    assert close(dense(again), dense(f), to=1e-6)
    balanced = again.a.square().sum(-1) - again.b.square().sum(-2)
    assert float(balanced.abs().max()) <= 1e-5 * max(1.0, float(again.a.square().sum(-1).max()))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([None, 2]), st.integers(1, 8), st.integers(1, 8))
def test_difference_is_the_stack_of_both(data, experts, d_out, d_in):
    left, right = (data.draw(factors(shape=(experts, d_out, d_in))) for _ in range(2))
    w = dense(left) - dense(right)
    assert close(dense(stack(left, right)), w)
    assert close(dense(stack(left, right, sign=1.0)), dense(left) + dense(right))
    distance = adapter_distance(Adapter({"m": left}, {}), Adapter({"m": right}, {}))
    assert distance == pytest.approx(float(w.norm()), abs=2e-6 * (1 + float(w.norm())))


def test_two_by_two_by_hand():
    # B = [3, 4]^T, A = [0, 2], scaling 0.5: dW = 0.5 * [[0, 6], [0, 8]] = [[0, 3], [0, 4]]
    # |dW| = sqrt(3^2 + 4^2) = 5, its one singular value; u = (0.6, 0.8), v = (0, 1).
    f = Factors(torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0], [4.0]]), 0.5)
    found = svd(f)
    assert found.s.tolist() == pytest.approx([5.0])
    assert (found.u * found.vh[0, 1]).flatten().tolist() == pytest.approx([0.6, 0.8])
    assert found.vh.abs().flatten().tolist() == pytest.approx([0.0, 1.0])
    assert float(norm(f)) == pytest.approx(5.0)
    # Against [[0, 3], [0, 0]] the difference is [[0, 0], [0, 4]], of norm 4.
    g = Factors(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0], [0.0]]), 1.0)
    assert spectrum(stack(f, g)).tolist() == pytest.approx([4.0, 0.0])
    # Both modules together: sqrt(25 + 9) = sqrt(34).
    assert adapter_norm(Adapter({"f": f, "g": g}, {})) == pytest.approx(math.sqrt(34))


def test_zero_adapter_has_zero_singular_values_and_stays_zero():
    f = Factors(torch.randn(3, 5), torch.zeros(4, 3), 2.0)
    assert svd(f).s.tolist() == [0.0, 0.0, 0.0] == spectrum(f).tolist()
    again = from_svd(svd(f), scaling=2.0)
    assert not again.a.any() and not again.b.any()


@settings(max_examples=40, deadline=None)
@given(factors())
def test_equal_adapters_have_no_directions_between_them(f):
    twice = Factors(2 * f.a, f.b / 2, f.scaling)
    assert not spectrum(stack(f, twice)).any() and not svd(stack(f, f)).s.any()
    assert adapter_distance(Adapter({"m": f}, {}), Adapter({"m": f}, {})) == 0.0


def test_svd_form_keeps_every_module_and_its_order():
    torch.manual_seed(0)
    adapter = Adapter(
        {
            "x.q_proj": Factors(torch.randn(3, 8), torch.randn(6, 3), 0.5),
            "x.experts": Factors(torch.randn(2, 3, 5), torch.randn(2, 7, 3), 4.0),
        },
        {"r": 3},
    )
    form = svd_form(adapter)
    assert list(form.modules) == list(adapter.modules) and form.config == {"r": 3}
    for name, f in adapter.modules.items():
        assert close(form.modules[name].dense(), dense(f), to=1e-6)
        strength = form.modules[name].a.norm(dim=-1)
        assert (strength.diff(dim=-1) <= 0).all()


def test_scaled_directions_scale_their_singular_values():
    torch.manual_seed(0)
    adapter = svd_form(
        Adapter(
            {
                "q": Factors(torch.randn(3, 8), torch.randn(6, 3), 0.5),
                "e": Factors(torch.randn(2, 3, 5), torch.randn(2, 7, 3), 4.0),
            },
            {},
        )
    )
    gates = {"q": torch.tensor([1.0, 0.0, 0.5]), "e": torch.tensor([[0.0, 1, 1], [1, 1, 0.25]])}
    out = scale_directions(adapter, gates)
    for name, f in adapter.modules.items():
        u, s, vh = torch.linalg.svd(dense(f), full_matrices=False)
        want = u[..., :3] * (s[..., :3] * gates[name])[..., None, :] @ vh[..., :3, :]
        assert close(dense(out.modules[name]), want, to=1e-6)
    # A closed gate leaves nothing in either factor, so training cannot reopen it.
    assert not out.modules["q"].a[1].any() and not out.modules["q"].b[:, 1].any()
    assert not out.modules["e"].a[0, 0].any() and not out.modules["e"].b[0, :, 0].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_principal_angles_against_scipy(d, p, q, seed):
    p, q = min(p, d), min(q, d)
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(d, k)))[0] for k in (p, q))
    ours = principal_angles(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    assert ours.shape == (min(p, q),)
    assert np.allclose(ours, np.sort(subspace_angles(left, right)), atol=1e-7)
    # scipy's own zeros are only good to 1.5e-8; shared directions are sharper here.
    assert (ours[: max(p + q - d, 0)] < 1e-12).all()


def test_principal_angles_by_hand():
    # span(e1, e2) against span(e1, (e2 + e3) / sqrt 2): one shared line, then 45 degrees.
    left = torch.eye(3, dtype=torch.float64)[:, :2]
    right = torch.tensor([[1.0, 0], [0, 2**-0.5], [0, 2**-0.5]], dtype=torch.float64)
    assert principal_angles(left, right).tolist() == pytest.approx([0.0, math.pi / 4], abs=1e-12)
    # A tilt of 1e-10, which the cosine 1 - 5e-21 cannot show.
    tilted = torch.tensor([[1.0], [1e-10], [0.0]], dtype=torch.float64)
    assert principal_angles(left[:, :1], tilted).tolist() == pytest.approx([1e-10], rel=1e-6)
