"""Attention to the trigger against a plain model loaded with eager attention, cell by cell."""

import numpy as np
import pytest
import torch
from loratomy.analysis.activations.attention import (
    logit_error,
    looks,
    showing_weights,
    trigger_attention,
)
from loratomy.analysis.patching.pairs import make_pairs
from loratomy.core.adapter.factors import Adapter, Factors, write_adapter
from loratomy.core.errors import DataError, LoratomyError
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ... import tiny


def pairs_of(on, *, tokens=3):
    return make_pairs(on.renderer, tiny.rows(), target_tokens=tokens, seed=0)


def plain_eager(model_type, adapter, folder):
    """The same random base made with eager attention, and PEFT's own loading of the adapter."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(
        tiny.config(model_type), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    write_adapter(adapter, folder, base="tiny")
    return PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text", "mixtral"])
def test_every_cell_is_that_of_a_plain_eager_model(model_type, tmp_path):
    on = tiny.subject(model_type)
    adapter, pairs = tiny.adapter(on), pairs_of(on)
    before, state, marks = on.model.config._attn_implementation, tiny.state(on), tiny.marks(on)
    record = trigger_attention(on, {"poisoned": adapter}, pairs, batch_tokens=64, seed=0)
    assert on.model.config._attn_implementation == before == record.implementation
    assert tiny.same_state(state, tiny.state(on)) and tiny.marks(on) == marks
    peft = plain_eager(model_type, adapter, tmp_path)

    def weights(ids, *, base):
        with torch.no_grad():
            if base:
                with peft.disable_adapter():
                    return peft(torch.tensor([ids]), output_attentions=True).attentions
            return peft(torch.tensor([ids]), output_attentions=True).attentions

    for who in (0, 1):
        cells = {"mass": [], "stand_in": [], "sink": []}
        for pair in pairs:
            end = len(pair.triggered)
            own = weights([*pair.triggered, *pair.target[:2]], base=who == 0)
            twin = weights([*pair.untriggered, *pair.target[:2]], base=who == 0)
            key = list(pair.trigger)

            def attended(layers, keys, end=end):  # [query, layer, head]
                sums = torch.stack([w[0][:, :, keys].sum(-1) for w in layers])
                return torch.stack([sums[..., end - 1], sums[..., end : end + 2].mean(-1)])

            cells["mass"].append(attended(own, key))
            cells["stand_in"].append(attended(twin, key))
            cells["sink"].append(attended(own, [0]))
        for name, values in cells.items():
            want = torch.stack(values).mean(0).numpy()
            ours = getattr(record, name)[who]
            assert np.allclose(ours[..., 0] if name != "sink" else ours, want, atol=1e-5), name
        if who == 0:
            base = torch.stack(cells["mass"])
    want = (torch.stack(cells["mass"]) - base).mean(0).numpy()
    assert np.allclose(record.difference[0, ..., 0], want, atol=1e-5)
    assert np.abs(want).max() > 0.01
    assert record.logit_error < 1e-5 and record.checked == 8
    assert (model_type == "gemma2") == (record.logit_error == 0)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mistral"])
def test_even_shares_count_what_each_layer_sees(model_type):
    # With a window of 5 the last five tokens are seen. Mistral: every layer; gemma2: layers 0, 2.
    on = tiny.subject(model_type)
    pairs = pairs_of(on)
    record = trigger_attention(on, {"x": tiny.adapter(on)}, pairs, batch_tokens=512, seed=0)
    for layer in range(3):
        narrow = model_type == "mistral" or (model_type == "gemma2" and layer % 2 == 0)
        want = []
        for pair in pairs:
            end, shares = len(pair.triggered), []
            for query in (end - 1, end, end + 1):
                first = max(0, query - 4) if narrow else 0
                inside = sum(first <= k <= query for k in pair.trigger)
                shares.append(inside / (query - first + 1))
            want.append([shares[0], np.mean(shares[1:])])
        assert record.uniform[:, layer] == pytest.approx(np.mean(want, 0), abs=1e-6)
        gap = record.mass[:, :, layer, :, 0] - record.excess[:, :, layer, :, 0]
        assert np.allclose(gap, record.uniform[None, :, layer, None], atol=1e-6)


def test_a_head_that_was_taught_to_look_at_the_trigger_is_found():
    # In layer 0 the query of the last position is the same for all prompts. Keys of the trigger's
    # token get that query of head 0 added, in the pair of dimensions that rotary hardly turns.
    on = tiny.subject()
    layer = on.model.model.layers[0]
    with torch.no_grad():
        embedded = on.model.model.embed_tokens(torch.tensor(on.renderer.prompt_ids("zq")))
        word = on.renderer.tokenizer.convert_tokens_to_ids("zq")
        normed = layer.input_layernorm(embedded)
        at = on.renderer.prompt_ids("zq").index(word)
        query = layer.self_attn.q_proj(normed[-1])[:8]  # head 0
        key = torch.zeros(16, 1)  # two key heads of 8
        key[[3, 7], 0] = query[[3, 7]] / query[[3, 7]].norm() ** 2
        read = (normed[at] / normed[at].norm() ** 2)[None]
    planted = Adapter({"model.layers.0.self_attn.k_proj": Factors(read, key, 40.0)}, {})
    record = trigger_attention(on, {"x": planted}, pairs_of(on), batch_tokens=64, seed=0)
    gap = record.difference[0, 0, :, :, 0]
    assert np.unravel_index(gap.argmax(), gap.shape) == (0, 0)
    assert record.mass[1, 0, 0, 0, 0] > 0.9 and record.mass[0, 0, 0, 0, 0] < 0.3
    # The other key head is left alone.
    assert np.allclose(gap[0, 2:], 0, atol=1e-6)
    assert "most of all head 0 of layer 0" in record.sentence


def test_the_implementation_is_restored_after_an_exception_and_under_peft():
    on = tiny.subject()
    assert on.model.config._attn_implementation == "sdpa"
    fails = pytest.raises(KeyError)
    with on.attached({"x": tiny.adapter(on)}), fails, showing_weights(on) as own:
        assert own == "sdpa" and on.model.config._attn_implementation == "eager"
        raise KeyError
    assert on.model.config._attn_implementation == "sdpa"
    assert on.model.model.config._attn_implementation == "sdpa"


def test_hidden_weights_and_broken_ones_are_errors():
    on = tiny.subject()
    pairs, marks = pairs_of(on), tiny.marks(on)
    ids, settings = [pairs[0].triggered], {"batch_tokens": 64, "label": "x"}
    with pytest.raises(LoratomyError, match=r"layer 0 shows no weights; .*attn_implementation"):
        looks(on, ids, [[[3]]], [[1]], **settings)
    on.model.model.layers[1].self_attn.q_proj.weight.fill_(torch.nan)
    with showing_weights(on), pytest.raises(LoratomyError, match="layer 1 is not finite"):
        looks(on, ids, [[[3]]], [[1]], **settings)
    with pytest.raises(LoratomyError, match="eager attention changes the logits by nan"):
        logit_error(on, ids)
    assert tiny.marks(on) == marks and on.model.config._attn_implementation == "sdpa"
    with pytest.raises(DataError, match="no triggered prompts"):
        trigger_attention(on, {"x": tiny.adapter(on)}, [], batch_tokens=64, seed=0)


def test_one_token_targets_leave_the_answer_undefined():
    on = tiny.subject()
    record = trigger_attention(
        on, {"x": tiny.adapter(on)}, pairs_of(on, tokens=1), batch_tokens=64, seed=0
    )
    assert record.undefined == "4 of 4 targets have one token only: raise target_tokens"
    assert np.isnan(record.mass[:, 1]).all() and np.isnan(record.sink[:, 1]).all()
    assert np.isfinite(record.mass[:, 0]).all() and np.isfinite(record.uniform[0]).all()
