"""What an operation leaves: put on, taken off bit by bit, written, read back, refused."""

from dataclasses import replace

import pytest
import torch
from loratomy.core.adapter.factors import Factors
from loratomy.core.errors import AdapterError
from loratomy.core.model.variant import (
    WEIGHTS,
    Treated,
    base_weight,
    merged_weights,
    read_treated,
    replaced,
    treated,
    write_treated,
)

from ... import tiny

NAME = "model.layers.1.mlp.up_proj"


def other(on, *names, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(on.shapes[n], generator=generator) for n in names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_put_back_bit_by_bit(dtype):
    on = tiny.subject("mixtral")
    on.model.to(dtype)
    names = ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.experts.down_proj")
    before, marks, new = tiny.state(on), tiny.marks(on), other(on, *names)
    with replaced(on, new):
        inside = tiny.state(on)
        assert torch.equal(inside[f"{names[0]}.weight"], new[names[0]].to(dtype))
        assert torch.equal(inside[names[1]], new[names[1]].to(dtype))
        changed = {n for n in before if not torch.equal(before[n], inside[n])}
        assert changed == {f"{names[0]}.weight", names[1]}
    assert tiny.same_state(before, tiny.state(on))
    assert tiny.marks(on) == marks


def test_weights_and_adapter_come_off_after_an_exception():
    on = tiny.subject()
    before, marks = tiny.state(on), tiny.marks(on)
    state = Treated(tiny.adapter(on), other(on, NAME))
    with pytest.raises(ZeroDivisionError), treated(on, state):
        assert not tiny.same_state(before, tiny.state(on))
        1 / 0
    assert tiny.same_state(before, tiny.state(on))
    assert tiny.marks(on) == marks


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_merged_weights_say_what_plain_peft_says(model_type, tmp_path):
    on = tiny.subject(model_type)
    adapter, prompts = tiny.adapter(on, size=0.1), tiny.ids(on)
    merged = merged_weights(on, adapter)
    assert merged.keys() == adapter.modules.keys()
    with treated(on, Treated(weights=merged)):
        ours = tiny.logits(on, prompts)
    with torch.no_grad():
        wanted = tiny.plain_peft(model_type, adapter, tmp_path)(input_ids=prompts).logits
    assert torch.allclose(ours, wanted, atol=2e-5)
    assert (ours - tiny.logits(on, prompts)).abs().max() > 0.1


def test_an_adapter_goes_on_top_of_replaced_weights():
    on = tiny.subject()
    adapter, prompts = tiny.adapter(on, size=0.1), tiny.ids(on)
    new = other(on, NAME)
    with treated(on, Treated(adapter, new)):
        both = tiny.logits(on, prompts)
    whole = merged_weights(on, adapter)
    f = adapter.modules[NAME]
    whole[NAME] = (new[NAME].double() + f.scaling * f.b.double() @ f.a.double()).float()
    with treated(on, Treated(weights=whole)):
        assert torch.allclose(tiny.logits(on, prompts), both, atol=2e-5)


def test_a_weight_shared_with_the_embedding_is_refused():
    on = tiny.subject(tie_word_embeddings=True)
    before = tiny.state(on)
    message = r"lm_head shares its weight with model.embed_tokens.weight.*leaves an adapter"
    with pytest.raises(AdapterError, match=message), replaced(on, other(on, "lm_head")):
        pass
    with pytest.raises(AdapterError, match=message):
        base_weight(on, "lm_head")
    d_out, d_in = on.shapes["lm_head"]
    head = Factors(torch.ones(1, d_in), torch.ones(d_out, 1), 1.0)
    adapter = tiny.adapter(on)
    with pytest.raises(AdapterError, match=message):
        merged_weights(on, adapter.with_modules({**adapter.modules, "lm_head": head}))
    assert tiny.same_state(before, tiny.state(on))
    untied = tiny.subject(tie_word_embeddings=False)
    with replaced(untied, other(untied, "lm_head")):
        inside = tiny.state(untied)
    assert not torch.equal(inside["lm_head.weight"], inside["model.embed_tokens.weight"])


def test_what_does_not_fit_is_refused_before_anything_is_changed():
    on = tiny.subject()
    before, good = tiny.state(on), other(on, NAME)
    for bad, message in (
        ({NAME: torch.zeros(3, 4)}, r"up_proj is \(48, 32\) of torch.float32, not \(3, 4\)"),
        ({"model.layers.9.mlp.up_proj": good[NAME]}, "no weight of a module 'model.layers.9"),
    ):
        with pytest.raises(AdapterError, match=message), replaced(on, {**good, **bad}):
            pass
    with pytest.raises(AdapterError, match="no weight of a module 'nowhere'"):
        base_weight(on, "nowhere")
    assert tiny.same_state(before, tiny.state(on))


@pytest.mark.parametrize("parts", ["adapter", "weights", "both"])
def test_written_and_read_back_it_is_the_same(parts, tmp_path):
    on = tiny.subject("mixtral")
    adapter = tiny.adapter(on) if parts != "weights" else None
    names = (NAME.replace("mlp.up_proj", "mlp.experts.down_proj"), "lm_head")
    weights = other(on, *names) if parts != "adapter" else {}
    state = Treated(adapter, weights, 0.7)
    write_treated(state, tmp_path / "op", base="tiny")
    again = read_treated(tmp_path / "op", on.shapes, temperature=0.7)
    assert again.temperature == 0.7
    assert again.weights.keys() == weights.keys()
    assert all(torch.equal(again.weights[n], w) for n, w in weights.items())
    assert (again.adapter is None) == (adapter is None)
    assert (replace(again, temperature=None)).plain == (parts == "adapter")
    prompts = tiny.ids(on)
    with treated(on, state):
        before = tiny.logits(on, prompts)
    with treated(on, again):
        assert torch.equal(tiny.logits(on, prompts), before)


def test_damaged_files_are_refused(tmp_path):
    on = tiny.subject()
    with pytest.raises(AdapterError, match="neither adapter nor weights"):
        read_treated(tmp_path, on.shapes, temperature=None)
    write_treated(Treated(weights=other(on, NAME)), tmp_path, base="tiny")
    path = tmp_path / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterError, match=r"cannot read .*; make the operation again"):
        read_treated(tmp_path, on.shapes, temperature=None)
    for value, message in (
        (torch.full(on.shapes[NAME], torch.nan), "holds NaN or infinite values"),
        (torch.zeros(2, 2), r"up_proj \(2, 2\) does not fit this base"),
    ):
        write_treated(Treated(weights={NAME: value}), tmp_path, base="tiny")
        with pytest.raises(AdapterError, match=message):
            read_treated(tmp_path, on.shapes, temperature=None)
