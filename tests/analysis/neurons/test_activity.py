"""Gradient norms per neuron against autograd on dense weights in float64."""

import numpy as np
import pytest
import torch
from loratomy.analysis.neurons.activity import activity, gradient_norms
from loratomy.core.adapter.factors import Adapter
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.batches import encode

from ... import tiny


def clean(on):
    return [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]


def dense_norms(family: str, adapter: Adapter | None, names, row):
    """Row norms of the gradient in ``W + dW`` as leaves of a float64 model, and the loss."""
    on = tiny.subject(family)
    tiny.in_double(on)
    weights = {}
    for name in names:
        fused = len(on.shapes[name]) == 3
        weights[name] = on.model.get_parameter(name if fused else f"{name}.weight")
        if adapter:
            weights[name].data += adapter.modules[name].dense().double()
        weights[name].requires_grad_()
    logits = on.model(input_ids=torch.tensor([row.prompt + row.completion])).logits[0]
    loss = torch.nn.functional.cross_entropy(
        logits[len(row.prompt) - 1 : -1], torch.tensor(row.completion)
    )
    loss.backward()
    return {n: w.grad.norm(dim=-1).numpy() for n, w in weights.items()}, loss.item()


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_norms_are_those_of_dense_autograd(family):
    on = tiny.subject(family)
    adapter, rows = tiny.adapter(on, size=0.1), clean(on)
    names = list(adapter.modules)
    before, marks = tiny.state(on), tiny.marks(on)
    for attached in (adapter, None):
        found, losses = gradient_norms(on, attached, rows, names)
        for i, row in enumerate(rows):
            wanted, loss = dense_norms(family, attached, names, row)
            assert losses[i] == pytest.approx(loss, rel=1e-4)
            for name in names:
                size = wanted[name].max()
                np.testing.assert_allclose(found[name][i], wanted[name], atol=2e-3 * size)
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks


def test_the_record_is_the_mean_over_prompts_and_neurons():
    on = tiny.subject("mixtral")
    poisoned, reference = tiny.adapter(on, size=0.1), tiny.adapter(on, size=0.02, seed=9)
    rows = clean(on)
    record = activity(on, poisoned, reference, rows)
    found, losses = gradient_norms(on, poisoned, rows, list(poisoned.modules))
    other, _ = gradient_norms(on, reference, rows, list(poisoned.modules))
    tokens = [len(row.completion) for row in rows]
    assert record.loss_poisoned == pytest.approx(np.average(losses, weights=tokens))
    # Expert 2 of a fused weight is a module of its own, with its own rows.
    fused = "model.layers.1.mlp.experts.down_proj"
    here = record.neuron_module == record.modules.index(f"{fused}#e2")
    np.testing.assert_allclose(record.poisoned[here], found[fused][:, 2].mean(0), rtol=1e-5)
    assert len(record.poisoned) == sum(v[0].size for v in found.values())
    of = [n for n in found if ".layers.1." in n]
    ours, theirs = (
        np.concatenate([f[n].reshape(3, -1) for n in of], 1).mean() for f in (found, other)
    )
    assert record.layer_poisoned[1, 0] == pytest.approx(ours, rel=1e-5)
    assert record.layer_ratio[1, 0] == pytest.approx(ours / theirs, rel=1e-5)
    assert (record.layer_ratio[:, 1] <= record.layer_ratio[:, 0]).all()
    assert (record.layer_ratio[:, 0] <= record.layer_ratio[:, 2]).all()
    assert record.more_active == pytest.approx((record.poisoned > record.other).mean())
    assert record.reference == "clean adapter" and record.n_prompts == 3


def test_an_adapter_beside_itself_is_exactly_as_active_and_the_base_is_the_fallback():
    on = tiny.subject()
    adapter = tiny.adapter(on, size=0.1)
    same = activity(on, adapter, adapter, clean(on))
    assert same.ratio.tolist() == [1, 1, 1] and same.more_active == 0
    nothing = tiny.adapter(on, size=0.0)
    base = activity(on, nothing, None, clean(on))
    assert base.reference == "base without adapter"
    np.testing.assert_allclose(base.poisoned, base.other, rtol=1e-4, atol=1e-7)


def test_errors_name_what_is_wrong_and_leave_no_trace():
    on = tiny.subject()
    adapter = tiny.adapter(on)
    with pytest.raises(DataError, match="no prompts"):
        activity(on, adapter, None, [])
    on.model.model.norm.weight.data[0] = torch.nan
    marks = tiny.marks(on)
    with pytest.raises(LoratomyError, match=r"gradient in model\.layers\.2.* is NaN"):
        activity(on, adapter, None, clean(on))
    assert tiny.marks(on) == marks
    tied = tiny.subject(tie_word_embeddings=True)
    with pytest.raises(LoratomyError, match="lm_head is shared between head and embedding"):
        gradient_norms(tied, None, clean(tied), ["lm_head"])
