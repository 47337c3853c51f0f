import math

import numpy as np
import pytest
import torch
from loratomy.analysis.weights.spectra import energy_directions, expanded, spectra
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import LoratomyError

from ... import tiny


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_singular_values_are_those_of_the_dense_change(model_type):
    adapter = tiny.adapter(tiny.subject(model_type), rank=4)
    found = spectra(adapter, name="poisoned")
    row = 0
    for name, f in adapter.modules.items():
        changes = f.scaling * (f.b.double() @ f.a.double())
        for e, w in enumerate(changes if f.fused else [changes]):
            s = torch.linalg.svdvals(w)[:4].numpy()
            assert found.modules[row] == (f"{name}#e{e}" if f.fused else name)
            assert found.kinds[row] == name.rsplit(".", 1)[-1]
            assert found.layers[row] == int(name.split(".")[2])
            assert found.singular_values[row] == pytest.approx(s, rel=1e-6)
            assert found.frobenius[row] == pytest.approx(float(w.norm()), rel=1e-6)
            p = s / s.sum()
            assert found.effective_rank[row] == pytest.approx(math.exp(-(p * np.log(p)).sum()))
            assert found.stable_rank[row] == pytest.approx((s**2).sum() / s[0] ** 2)
            row += 1
    assert row == len(found.modules) == len(expanded(adapter))


def test_ranks_by_hand():
    # dW = diag(3, 4): Frobenius 5, stable rank 25 / 16; p = (4/7, 3/7), entropy 0.682908 nats.
    found = spectra(
        Adapter(
            {
                "x.layers.0.q_proj": Factors(torch.diag(torch.tensor([3.0, 4.0])), torch.eye(2), 1),
                "x.layers.1.q_proj": Factors(torch.ones(1, 2), torch.zeros(2, 1), 1),
                "lm_head": Factors(torch.ones(1, 2), torch.ones(2, 1), 0.5),
            },
            {},
        ),
        name="clean",
    )
    assert found.singular_values.tolist() == [
        pytest.approx([4.0, 3.0]),
        [0.0, 0.0],
        pytest.approx([1.0, 0.0]),  # 0.5 * [[1, 1], [1, 1]] has the one singular value 0.5 * 2
    ]
    assert found.frobenius.tolist() == pytest.approx([5.0, 0.0, 1.0])
    assert found.stable_rank.tolist() == pytest.approx([25 / 16, 0.0, 1.0])
    assert found.effective_rank.tolist() == pytest.approx([math.exp(0.682908), 0.0, 1.0], rel=1e-5)
    assert found.layers.tolist() == [0, 1, -1]


def test_energy_counts_by_hand():
    # Squares 16, 9, 4, 1 of 30: 50 % = 15 needs one, 90 % = 27 three (29), 99 % = 29.7 all four.
    s = np.array([[1.0, 4.0, 2.0, 3.0], [5.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert energy_directions(s).tolist() == [[1, 3, 4], [1, 2, 2], [0, 0, 0]]


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_a_layer_is_its_modules_on_one_diagonal(model_type):
    on = tiny.subject(model_type)
    adapter = tiny.adapter(on, rank=2)
    found = spectra(adapter, name="poisoned", base=on.model)
    parts = {name: f.scaling * (f.b.double() @ f.a.double()) for name, f in adapter.modules.items()}
    total = sum(float(w.square().sum()) for w in parts.values())
    weights = {n: p.double() for n, p in on.model.named_parameters()}
    for row, layer in enumerate(found.by_layer.layers):
        here = {n: w for n, w in parts.items() if int(n.split(".")[2]) == layer}
        blocks = [b for w in here.values() for b in (w if w.dim() == 3 else [w])]
        s = torch.linalg.svdvals(torch.block_diag(*blocks)).numpy()
        norm = np.linalg.norm(s)
        share = s[s > 1e-9] / s.sum()
        base = sum(
            float(weights[n if n in weights else f"{n}.weight"].square().sum()) for n in here
        )
        carried = (s**2).cumsum() / (s**2).sum()
        layers = found.by_layer
        assert layers.frobenius[row] == pytest.approx(norm, rel=1e-6)
        assert layers.share[row] == pytest.approx(norm**2 / total, rel=1e-6)
        assert layers.stable_rank[row] == pytest.approx(norm**2 / s[0] ** 2, rel=1e-6)
        entropy = -(share * np.log(share)).sum()
        assert layers.effective_rank[row] == pytest.approx(math.exp(entropy), rel=1e-6)
        want = [int(np.searchsorted(carried, part) + 1) for part in (0.5, 0.9, 0.99)]
        assert layers.energy[row].tolist() == want
        assert layers.relative_norm[row] == pytest.approx(norm / base**0.5, rel=1e-6)
    assert found.share.sum() == pytest.approx(1) == found.by_layer.share.sum()


def test_the_norm_relative_to_base_weights_that_are_stored_in_half_precision():
    on = tiny.subject("mixtral")
    adapter = tiny.adapter(on)
    assert np.isnan(spectra(adapter, name="x").relative_norm).all()
    on.model.bfloat16()
    found = spectra(adapter, name="x", base=on.model)
    place = found.modules.index("model.layers.1.mlp.experts.down_proj#e2")
    w = on.model.get_parameter("model.layers.1.mlp.experts.down_proj")[2]
    f = adapter.modules["model.layers.1.mlp.experts.down_proj"]
    want = (f.scaling * f.b[2].double() @ f.a[2].double()).norm() / w.double().norm()
    assert found.relative_norm[place] == pytest.approx(float(want), rel=1e-6)


def test_a_base_that_does_not_fit_or_is_not_finite_is_named():
    on = tiny.subject()
    adapter = tiny.adapter(on)
    with pytest.raises(LoratomyError, match=r"gate_proj is \(64, 32\).* needs \(48, 32\)"):
        spectra(adapter, name="x", base=tiny.subject(intermediate_size=64).model)
    on.model.get_submodule("model.layers.1.mlp.up_proj").weight[3, 4] = math.nan
    with pytest.raises(LoratomyError, match=r"layers\.1\.mlp\.up_proj holds NaN"):
        spectra(adapter, name="x", base=on.model)
    wrong = Adapter({"model.layers.9.mlp.up_proj": next(iter(adapter.modules.values()))}, {})
    with pytest.raises(LoratomyError, match=r"no weight 'model\.layers\.9"):
        spectra(wrong, name="x", base=on.model)


def test_an_adapter_that_changes_nothing_has_no_share():
    found = spectra(
        Adapter({"x.layers.0.q": Factors(torch.ones(1, 2), torch.zeros(2, 1), 1)}, {}), name="x"
    )
    assert np.isnan(found.share[0]) and np.isnan(found.by_layer.share[0])
    assert found.energy.tolist() == [[0, 0, 0]]
