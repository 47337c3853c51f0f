"""Gates on singular directions against adapters written out and loaded by plain PEFT."""

import numpy as np
import pytest
import torch
from loratomy.analysis.localisation.gates import directions_of, gated_model
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import AdapterError

from ... import tiny

FAMILIES = ("llama", "gemma2", "mixtral")


def uneven(on) -> Adapter:
    """Ranks and scalings that differ from module to module."""
    modules = {}
    for i, (name, f) in enumerate(tiny.adapter(on, rank=3).modules.items()):
        keep, scaling = 3 - i % 2, f.scaling * (1 + i % 3)
        modules[name] = Factors(f.a[..., :keep, :], f.b[..., :keep] / (1 + i % 3), scaling)
    return Adapter(modules, {})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_open_gates_are_the_adapter_and_closed_ones_the_base(model_type):
    on, prompts = tiny.subject(model_type), tiny.ids(tiny.subject())
    adapter = uneven(on)
    base = tiny.logits(on, prompts)
    with on.attached({"x": adapter}):
        want = tiny.logits(on, prompts)
    before, marks = tiny.state(on), tiny.marks(on)
    with gated_model(on, directions_of(adapter)) as gated, torch.no_grad():
        batch = {"input_ids": prompts}
        assert torch.allclose(gated.logits(gated.ones(), batch), want, atol=2e-5)
        assert torch.allclose(gated.logits(0 * gated.ones(), batch), base, atol=1e-6)
        # The call replaces factors for itself only.
        assert torch.allclose(tiny.logits(on, prompts), want, atol=2e-5)
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks


@pytest.mark.parametrize("model_type", FAMILIES)
def test_closed_gates_are_the_cut_adapter_loaded_by_peft(model_type, tmp_path):
    on = tiny.subject(model_type)
    prompts, directions = tiny.ids(on), directions_of(uneven(on))
    cut = np.random.default_rng(0).random(len(directions)) < 0.4
    with gated_model(on, directions) as gated, torch.no_grad():
        ours = gated.logits(torch.tensor(~cut).float(), {"input_ids": prompts})
        uncut = gated.logits(gated.ones(), {"input_ids": prompts})
    peft = tiny.plain_peft(model_type, directions.cut(cut), tmp_path)
    with torch.no_grad():
        want = peft(input_ids=prompts, use_cache=False).logits
    assert (uncut - want).abs().max() > 0.1
    assert (ours - want).abs().max() <= 2e-5


@pytest.mark.parametrize("model_type", FAMILIES)
def test_directions_are_the_dense_singular_values_in_order(model_type):
    adapter = uneven(tiny.subject(model_type))
    d, i = directions_of(adapter), 0
    for m, (name, f) in enumerate(adapter.modules.items()):
        changes = f.scaling * (f.b.double() @ f.a.double())
        for e, w in enumerate(changes if f.fused else [changes]):
            for place, s in enumerate(torch.linalg.svdvals(w)[: f.rank].tolist()):
                assert (d.module[i], d.place[i]) == (m, place)
                assert d.expert[i] == (e if f.fused else -1)
                assert d.sigma[i] == pytest.approx(s, rel=1e-5)
                assert d.layer[i] == int(name.split(".")[2])
                i += 1
    assert i == len(d) and d.names == list(adapter.modules)


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_a_cut_removes_exactly_its_singular_directions(model_type):
    adapter = uneven(tiny.subject(model_type))
    d = directions_of(adapter)
    cut = (d.place == 0) & (d.module % 2 == 0)
    after = d.cut(cut)
    for m, (name, f) in enumerate(adapter.modules.items()):
        u, s, vh = torch.linalg.svd(f.scaling * (f.b.double() @ f.a.double()))
        s, k = s[..., : f.rank].clone(), f.rank
        s[..., 0] *= m % 2
        want = u[..., :k] * s[..., None, :] @ vh[..., :k, :]
        assert torch.allclose(after.modules[name].dense().double(), want, atol=2e-6)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_gradients_in_the_gates_against_finite_differences(model_type):
    # With all experts routed to, the router chooses nothing and there is no jump to step over.
    routed = {"num_experts_per_tok": 4} if model_type == "mixtral" else {}
    on = tiny.subject(model_type, **routed)
    prompts, d = tiny.ids(on), directions_of(tiny.adapter(on, rank=2, size=0.05))
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(len(tiny.tokenizer()), generator=draw).double()

    def value(gated, gates):
        return (gated.logits(gates, {"input_ids": prompts})[:, -1] @ weight).sum()

    with gated_model(on, d) as gated:
        tiny.in_double(on)
        point = (0.3 + 0.7 * torch.rand(len(d), generator=draw)).double()
        gates = point.clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(gated, gates), gates)
        scale, height = float(slope.abs().max()), 1e-2  # norms still run in float32
        with torch.no_grad():
            for i in np.linspace(0, len(d) - 1, 12).astype(int):
                step = torch.zeros(len(d)).double()
                step[i] = height
                rise = float(value(gated, point + step) - value(gated, point - step))
                assert rise / (2 * height) == pytest.approx(float(slope[i]), abs=1e-3 * scale)


def test_table_puts_values_where_their_direction_is():
    d = directions_of(uneven(tiny.subject("mixtral")))
    table = d.table(np.arange(len(d)))
    assert table.shape[0] == len(d.names) and np.isfinite(table).sum() == len(d)
    rank = next(iter(d.adapter.modules.values())).rank
    for i in (0, 7, len(d) - 1):
        assert table[d.module[i], max(d.expert[i], 0) * rank + d.place[i]] == i


def test_an_adapter_without_directions_is_an_error():
    adapter = tiny.adapter(tiny.subject())
    d = directions_of(adapter)
    with pytest.raises(AdapterError, match="changes nothing"):
        directions_of(d.cut(np.ones(len(d), bool)))
