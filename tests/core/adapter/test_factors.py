"""Adapters in and out of PEFT's folders and on and off a model: the same numbers by plain PEFT."""

import pytest
import torch
from loratomy.core.adapter.factors import (
    Adapter,
    Factors,
    kind_of,
    layer_of,
    live_rank,
    pack,
    read_adapter,
    uniform,
    unpack,
    write_adapter,
)
from loratomy.core.errors import AdapterError, LoratomyError
from loratomy.core.stopping import Stopped
from peft.tuners.lora.layer import LoraLayer, ParamWrapper

from ... import tiny

FAMILIES = ("llama", "gemma2", "mixtral")


def dense(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {n: f.scaling * (f.b.double() @ f.a.double()) for n, f in adapter.modules.items()}


def mixed_adapter(on) -> Adapter:
    """Ranks and scalings that differ by module, and directions of zeros in between."""
    modules = {}
    for i, (name, f) in enumerate(tiny.adapter(on, rank=4).modules.items()):
        a, b = f.a.clone(), f.b.clone()
        if i % 2:
            a[..., 1, :], b[..., 1] = 0, 0
        keep = 4 - i % 3
        modules[name] = Factors(a[..., :keep, :], b[..., :keep], f.scaling / 2 ** (i % 2))
    return Adapter(modules, {})


@pytest.mark.parametrize("model_type", FAMILIES)
def test_round_trip_is_exact(model_type, tmp_path):
    on = tiny.subject(model_type)
    adapter = tiny.adapter(on)
    write_adapter(adapter, tmp_path, base="tiny")
    again = read_adapter(tmp_path, on.shapes)
    assert set(again.modules) == set(adapter.modules)
    for name, f in adapter.modules.items():
        assert torch.equal(again.modules[name].a, f.a) and torch.equal(again.modules[name].b, f.b)
        assert again.modules[name].scaling == f.scaling


@pytest.mark.parametrize("model_type", FAMILIES)
def test_uniform_changes_no_weight(model_type, tmp_path):
    on = tiny.subject(model_type)
    adapter = mixed_adapter(on)
    rank, scaling, modules = uniform(adapter)
    assert rank == max(live_rank(f) for f in adapter.modules.values())
    assert {f.rank for f in modules.values()} == {rank}
    assert {f.scaling for f in modules.values()} == {scaling}
    for name, want in dense(adapter).items():
        f = modules[name]
        # Scalings differ by powers of two, so that even the rounding is the same.
        assert torch.allclose(scaling * (f.b.double() @ f.a.double()), want, rtol=0, atol=1e-12)
    write_adapter(adapter, tmp_path, base="tiny")
    stored = dense(read_adapter(tmp_path, on.shapes))
    assert all(torch.allclose(stored[n], w, rtol=0, atol=1e-12) for n, w in dense(adapter).items())


def test_live_rank_counts_directions_that_training_can_reach():
    a, b = torch.zeros(3, 4), torch.zeros(5, 3)
    assert live_rank(Factors(a, b, 1.0)) == 0
    a[2, 1] = 1.0  # B is still zero: a fresh direction, alive
    assert live_rank(Factors(a, b, 1.0)) == 1
    assert uniform(Adapter({"q": Factors(a, b, 1.0)}, {}))[0] == 1
    assert uniform(Adapter({"q": Factors(a * 0, b, 1.0)}, {}))[0] == 1  # PEFT has no rank 0


@pytest.mark.parametrize("model_type", FAMILIES)
def test_plain_peft_gives_the_same_logits_attached_loaded_and_merged(model_type, tmp_path):
    on = tiny.subject(model_type)
    adapter, prompts = mixed_adapter(on), tiny.ids(on)
    base = tiny.logits(on, prompts)
    with on.attached({"x": adapter}):
        ours = tiny.logits(on, prompts)
    peft = tiny.plain_peft(model_type, adapter, tmp_path)
    with torch.no_grad():
        loaded = peft(input_ids=prompts, use_cache=False).logits
        merged = peft.merge_and_unload()(input_ids=prompts, use_cache=False).logits
    assert (ours - base).abs().max() > 0.5
    assert (ours - loaded).abs().max() <= 1e-5
    assert (ours - merged).abs().max() <= 5e-4 * base.abs().max()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_merged_weights_are_base_plus_dense(model_type, tmp_path):
    on = tiny.subject(model_type)
    adapter = mixed_adapter(on)
    merged = tiny.plain_peft(model_type, adapter, tmp_path).merge_and_unload()
    before, after = tiny.state(on), dict(merged.named_parameters())
    for name, change in dense(adapter).items():
        key = name if name in after else f"{name}.weight"
        assert torch.allclose(after[key].double(), before[key].double() + change, atol=2e-6)


def test_fused_storage_puts_the_expert_last_in_b():
    # Two experts, rank 2: column r * E + e of the stored B is direction r of expert e.
    b = torch.arange(2 * 3 * 2).reshape(2, 3, 2).float()  # [expert, out, rank]
    a = torch.arange(2 * 2 * 5).reshape(2, 2, 5).float()  # [expert, rank, in]
    stored_a, stored_b = pack(Factors(a, b, 1.0))
    assert stored_a.shape == (4, 5) and stored_b.shape == (3, 4)
    for e in range(2):
        for r in range(2):
            assert torch.equal(stored_a[e * 2 + r], a[e, r])
            assert torch.equal(stored_b[:, r * 2 + e], b[e, :, r])
    again = unpack(stored_a, stored_b, 2, fused=True)
    assert torch.equal(again[0], a) and torch.equal(again[1], b)


def test_one_expert_alone_changes_only_tokens_routed_to_it(tmp_path):
    on = tiny.subject("mixtral")
    name = next(n for n in tiny.wanted(on) if n.endswith("down_proj"))
    f = tiny.adapter(on).modules[name]
    only = torch.zeros(4)
    only[2] = 1
    adapter = Adapter({name: Factors(f.a, f.b * only[:, None, None], f.scaling)}, {})
    merged = tiny.plain_peft("mixtral", adapter, tmp_path).merge_and_unload()
    change = dict(merged.named_parameters())[name] - tiny.state(on)[name]
    assert [bool(change[e].any()) for e in range(4)] == [False, False, True, False]


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("fails", [False, True])
def test_attached_leaves_the_model_as_it_was(model_type, fails):
    on = tiny.subject(model_type)
    on.model.train()
    on.layers[0].eval()
    on.model.get_submodule("model.norm").weight.requires_grad_(True)
    before, marks = tiny.state(on), tiny.marks(on)

    def use():
        with on.attached({"x": tiny.adapter(on), "y": tiny.adapter(on, seed=2)}, trainable=True):
            assert not on.model.training
            on.model(input_ids=tiny.ids(on), use_cache=False).logits.sum().backward()
            if fails:
                raise RuntimeError("in the middle")

    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            use()
    else:
        use()
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks


def test_only_the_first_adapter_trains_and_only_when_asked():
    on = tiny.subject("mixtral")
    pair = {"x": tiny.adapter(on), "y": tiny.adapter(on, seed=2)}
    for trainable in (False, True):
        with on.attached(pair, trainable=trainable) as attached:
            free = {n for n, p in on.model.named_parameters() if p.requires_grad}
            assert bool(free) == trainable and all(".x.weight" in n for n in free)
            with attached.using("y"):
                pass
            assert free == {n for n, p in on.model.named_parameters() if p.requires_grad}


def test_using_none_leaves_gradients_as_they_were():
    on = tiny.subject()
    with on.attached({"x": tiny.adapter(on)}) as attached:
        with attached.using(None):
            pass
        assert not any(p.requires_grad for p in on.model.parameters())


def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was():
    on, wider = tiny.subject(), tiny.subject(intermediate_size=64)
    before, marks = tiny.state(on), tiny.marks(on)
    wrong = {"x": tiny.adapter(on), "y": tiny.adapter(wider)}
    with pytest.raises(RuntimeError), on.attached(wrong):
        pass
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
@pytest.mark.parametrize("nth", [3, -2])
def test_a_signal_while_adapters_are_put_on_leaves_the_model_as_it_was(
    model_type, nth, monkeypatch
):
    on = tiny.subject(model_type)
    before, marks = tiny.state(on), tiny.marks(on)
    pair = {"x": tiny.adapter(on), "y": tiny.adapter(on, seed=2)}
    calls, at = [0], nth % (2 * len(pair["x"].modules))

    def stopping(put_on):
        def update_layer(layer, *args, **given):
            calls[0] += 1
            if calls[0] == at:
                raise Stopped(15)
            put_on(layer, *args, **given)

        return update_layer

    for kind in (LoraLayer, ParamWrapper):
        monkeypatch.setattr(kind, "update_layer", stopping(kind.update_layer))
    with pytest.raises(Stopped), on.attached(pair):
        pass
    assert calls[0] == at
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks
    monkeypatch.undo()
    with on.attached(pair) as attached:
        assert dense(attached.read_back("y")).keys() == pair["y"].modules.keys()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_two_adapters_switch(model_type):
    on, adapters = tiny.subject(model_type), {}
    prompts = tiny.ids(on)
    alone = {None: tiny.logits(on, prompts)}
    for seed, name in enumerate(("x", "y"), 1):
        adapters[name] = tiny.adapter(on, seed=seed, rank=1 + seed)
        with on.attached({name: adapters[name]}):
            alone[name] = tiny.logits(on, prompts)
    with on.attached(adapters) as attached:
        assert torch.equal(tiny.logits(on, prompts), alone["x"])
        for name in ("y", None, "x"):
            with attached.using(name):
                assert torch.allclose(tiny.logits(on, prompts), alone[name], atol=1e-6)
        with pytest.raises(RuntimeError), attached.using("y"):
            raise RuntimeError
        assert torch.equal(tiny.logits(on, prompts), alone["x"])
        with pytest.raises(LoratomyError, match="'z' is not attached"):
            attached.using("z")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_read_back_is_what_was_attached_and_what_was_changed(model_type):
    on = tiny.subject(model_type)
    adapter = mixed_adapter(on)
    with on.attached({"x": adapter}) as attached:
        back = dense(attached.read_back("x"))
        assert all(torch.allclose(back[n], w, atol=1e-12) for n, w in dense(adapter).items())
        name, (_, b_name) = next(iter(attached.factor_names("x").items()))
        with torch.no_grad():
            dict(on.model.named_parameters())[b_name].mul_(3)
        assert torch.allclose(
            dense(attached.read_back("x"))[name], 3 * dense(adapter)[name], atol=1e-5
        )


def test_another_base_is_refused_with_the_shapes(tmp_path):
    on, wider = tiny.subject("llama"), tiny.subject("llama", intermediate_size=64)
    write_adapter(tiny.adapter(on), tmp_path, base="tiny")
    with pytest.raises(AdapterError, match=r"has shape .*48.* needs .*64"):
        read_adapter(tmp_path, wider.shapes)


def test_names():
    assert layer_of("model.layers.12.mlp.down_proj") == 12
    assert layer_of("lm_head") == -1
    assert kind_of("model.layers.12.mlp.down_proj") == "down_proj"
