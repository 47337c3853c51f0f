import numpy as np
import pytest
import torch
from loratomy.analysis.weights.difference import difference
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import AdapterError
from scipy.linalg import orth, subspace_angles

from ... import tiny


def matrices(adapter: Adapter) -> list[np.ndarray]:
    """Dense changes in float64, experts one by one."""
    out = []
    for f in adapter.modules.values():
        w = (f.scaling * (f.b.double() @ f.a.double())).numpy()
        out.extend(w if f.fused else [w])
    return out


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_against_dense_matrices(model_type):
    on = tiny.subject(model_type)
    clean, poisoned = tiny.adapter(on, rank=2), tiny.adapter(on, seed=2, rank=3, scaling=0.5)
    found = difference(clean, poisoned)
    pairs = list(zip(matrices(clean), matrices(poisoned), strict=True))
    assert len(found.modules) == len(pairs)
    for i, (one, other) in enumerate(pairs):
        gap = other - one
        assert found.clean_norm[i] == pytest.approx(np.linalg.norm(one), rel=1e-6)
        assert found.poisoned_norm[i] == pytest.approx(np.linalg.norm(other), rel=1e-6)
        assert found.difference_norm[i] == pytest.approx(np.linalg.norm(gap), rel=1e-6)
        s = np.linalg.svd(gap, compute_uv=False)[:5]
        assert found.singular_values[i] == pytest.approx(s, rel=1e-5)
        for ours, ends in ((found.input_angles, (one.T, other.T)),
                           (found.output_angles, (one, other))):  # fmt: skip
            left, right = (orth(w, rcond=1e-6) for w in ends)
            assert ours[i] == pytest.approx(np.sort(subspace_angles(left, right)), abs=1e-5)


def test_an_adapter_against_itself_has_no_difference_and_no_angles():
    adapter = tiny.adapter(tiny.subject(), rank=3)
    found = difference(adapter, adapter)
    assert found.difference_norm.max() == found.singular_values.max() == 0.0
    assert found.input_angles.max() < 1e-6 and found.output_angles.max() < 1e-6


def one(a: torch.Tensor, b: torch.Tensor) -> Adapter:
    return Adapter({"q": Factors(a, b, 1.0)}, {})


def test_dependent_and_zero_factors_span_no_more_than_the_change():
    # e1 twice, and a zero row: dW reads e1 alone, against e2 a right angle, not more of them.
    e = torch.eye(4)
    twice = torch.stack([e[0], e[0], 0 * e[0]])
    found = difference(one(twice, torch.ones(4, 3)), one(e[1:2], torch.ones(4, 1)))
    assert found.input_angles.tolist() == [pytest.approx([np.pi / 2])]
    assert found.output_angles.tolist() == [pytest.approx([0.0], abs=1e-7)]


def test_a_module_that_does_nothing_in_one_adapter_has_no_angles():
    left = Adapter(
        {"q": Factors(torch.ones(1, 3), torch.zeros(2, 1), 1.0),
         "k": Factors(torch.ones(1, 3), torch.ones(2, 1), 1.0)}, {},
    )  # fmt: skip
    right = Adapter({n: Factors(torch.ones(1, 3), torch.ones(2, 1), 1.0) for n in "qk"}, {})
    found = difference(left, right)
    assert np.isnan(found.input_angles[0]).all() and found.input_angles[1, 0] < 1e-7
    # |1 1 1; 1 1 1| = sqrt 6, all of it new in q and none in k.
    assert found.difference_norm.tolist() == pytest.approx([6**0.5, 0.0], abs=1e-6)


def test_adapters_of_other_modules_are_refused_by_name():
    adapter = tiny.adapter(tiny.subject())
    names = list(adapter.modules)
    fewer = adapter.with_modules({n: adapter.modules[n] for n in names[1:]})
    with pytest.raises(AdapterError, match=names[0]):
        difference(fewer, adapter)
