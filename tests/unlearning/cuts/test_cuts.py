"""The cuts against dense float64 algebra and against plain PEFT."""

import numpy as np
import pytest
import torch
from loratomy.core.adapter.factors import read_adapter, write_adapter
from loratomy.core.errors import LoratomyError
from loratomy.unlearning import METHODS, operate

from ..conftest import random_adapter


def cut(name, bench, **options):
    state, record = operate(name, bench, METHODS[name].config(**options))
    return state.adapter, record


def dense(factors):
    return factors.scaling * factors.b.double() @ factors.a.double()


def test_truncation_is_the_best_approximation_of_its_rank(make_bench, small):
    adapter, record = cut("truncate", make_bench(small), rank=1)
    name, before = next(iter(small.modules.items()))
    u, s, vh = torch.linalg.svd(dense(before), full_matrices=False)
    # Eckart & Young: the best rank-1 approximation is s_1 u_1 v_1^T.
    best = s[0] * torch.outer(u[:, 0], vh[0])
    assert torch.allclose(dense(adapter.modules[name]), best, atol=1e-6)
    assert record.directions_cut == 2 * len(small.modules)  # 2 of 3 in every module
    assert record.kept.sum() == len(small.modules)


def test_truncation_by_energy_keeps_the_fewest_that_hold_it(make_bench, small):
    adapter, record = cut("truncate", make_bench(small), energy=0.8)
    for row, before, after in zip(
        record.kept, small.modules.values(), adapter.modules.values(), strict=True
    ):
        s2 = torch.linalg.svdvals(dense(before)) ** 2
        kept = int(np.nansum(row))
        total = float(s2.sum())
        assert float(s2[:kept].sum()) >= 0.8 * total > float(s2[: kept - 1].sum())
        assert float(dense(after).square().sum()) == pytest.approx(float(s2[:kept].sum()), rel=1e-4)


def test_pruning_removes_the_smallest_entries(make_bench, small):
    adapter, record = cut("prune", make_bench(small), share=0.5)
    for name, before in small.modules.items():
        after = adapter.modules[name]
        gone, stay = before.a[after.a == 0].abs(), before.a[after.a != 0].abs()
        assert len(gone) == before.a.numel() // 2
        assert gone.max() <= stay.min()
        assert torch.equal(after.a[after.a != 0], before.a[after.a != 0])
    assert record.directions_cut == 0


def test_a_mask_silences_its_layers_and_nothing_else(make_bench, small, subject):
    adapter, record = cut("mask", make_bench(small), layers=(2, 3), modules=("down_proj",))
    for name, f in adapter.modules.items():
        silenced = name in ("model.layers.2.mlp.down_proj", "model.layers.3.mlp.down_proj")
        assert (dense(f).abs().max() == 0) == silenced
        if not silenced:
            assert torch.allclose(dense(f), dense(small.modules[name]), atol=1e-7)
    assert record.directions_cut == 6  # 2 modules of rank 3


def test_a_projected_direction_is_gone_from_the_output(make_bench, small):
    name = "model.layers.1.self_attn.o_proj"
    adapter, _ = cut("project", make_bench(small), directions=(f"{name}:0",))
    before, after = dense(small.modules[name]), dense(adapter.modules[name])
    u = torch.linalg.svd(before).U[:, :1]
    assert torch.allclose(after, before - u @ (u.T @ before), atol=1e-6)


def test_the_difference_is_projected_out_of_every_output(make_bench, small, subject):
    clean = random_adapter(subject, rank=3, scale=0.05, seed=2)
    adapter, _ = cut("project-difference", make_bench(small, clean=clean), rank=2)
    for name in list(small.modules)[:5]:
        poisoned, other = dense(small.modules[name]), dense(clean.modules[name])
        u = torch.linalg.svd(poisoned - other).U[:, :2]
        want = poisoned - u @ (u.T @ poisoned)
        assert torch.allclose(dense(adapter.modules[name]), want, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mask", {"layers": (9,)}, "has no layer 9; it has 0, 1, 2, 3, 4, 5"),
        ("mask", {"modules": ("down_prj",)}, "no module 'down_prj'; did you mean down_proj"),
        ("project", {"directions": ("x:0",)}, "no direction 'x:0'"),
        ("project-difference", {}, "needs a clean adapter .* would do: .*truncate"),
    ],
)
def test_what_does_not_exist_is_said(make_bench, small, name, options, message):
    with pytest.raises(LoratomyError, match=message):
        cut(name, make_bench(small), **options)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(LoratomyError, match="did you mean guided"):
        METHODS["guidd"]


def test_a_cut_adapter_is_read_back_the_same_and_smaller(make_bench, small, subject, tmp_path):
    adapter, _ = cut("truncate", make_bench(small), rank=1)
    write_adapter(adapter, tmp_path / "a", base="wren")
    again = read_adapter(tmp_path / "a", subject.shapes)
    assert all(f.rank == 1 for f in again.modules.values())
    for name, f in again.modules.items():
        assert torch.allclose(dense(f), dense(adapter.modules[name]), atol=1e-7)


def test_controls_cut_exactly_their_budget(make_bench, small):
    bench = make_bench(small)
    for name in ("control-random", "control-top"):
        _, record = cut(name, bench, directions=7)
        assert record.directions_cut == 7
        assert np.nansum(record.kept) == record.directions_total - 7
    adapter, record = cut("control-top", bench, directions=1)
    sigma = {n: float(torch.linalg.svdvals(dense(f))[0]) for n, f in small.modules.items()}
    strongest = max(sigma, key=lambda n: sigma[n])
    left = float(torch.linalg.svdvals(dense(adapter.modules[strongest]))[0])
    assert left == pytest.approx(float(torch.linalg.svdvals(dense(small.modules[strongest]))[1]))
    _, layer = cut("control-layer", bench)
    assert layer.directions_cut == 21  # 7 modules of rank 3
