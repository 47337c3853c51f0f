import math

import numpy as np
import pytest
import torch
from loratomy.analysis.spectra import expanded, spectra
from loratomy.core.adapters import Adapter, Factors

from .. import tiny


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
