"""Every family: what an adapter does here is what plain PEFT does with the same files."""

from dataclasses import replace

import pytest
import torch
from loratomy.core.errors import LoratomyError
from loratomy.core.model.families import FAMILIES, check_family, linear_shape, mid_of
from loratomy.core.model.variant import Treated, base_weight, merged_weights, treated
from peft.tuners.lora import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer

from ... import tiny

NEW = (
    *("gemma", "gemma3", "phi", "phi3", "gpt2", "gpt_neox", "opt", "olmo2", "smollm3", "granite"),
    *("qwen2_moe", "qwen3_moe"),
)


@pytest.mark.parametrize("model_type", NEW)
def test_an_adapter_is_peft_s_in_logits_and_in_every_weight(model_type, tmp_path):
    on = tiny.subject(model_type)
    adapter, prompts = tiny.adapter(on), tiny.ids(on)
    plain = tiny.logits(on, prompts)
    with on.attached({"x": adapter}):
        ours = tiny.logits(on, prompts)
    with treated(on, Treated(weights=merged_weights(on, adapter))):
        merged = tiny.logits(on, prompts)
    peft = tiny.plain_peft(model_type, adapter, tmp_path)
    with torch.no_grad():
        theirs = peft(input_ids=prompts, use_cache=False).logits
    scale = max(1.0, float(plain.abs().max()))
    assert (ours - plain).abs().max() > 0.1 * scale
    assert (ours - theirs).abs().max() <= 1e-5 * scale
    assert (merged - theirs).abs().max() <= 1e-3 * scale
    found = {}
    for name, layer in peft.base_model.model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            own = name.replace(".base_layer", "")
            own += f".{layer.parameter_name}" if isinstance(layer, ParamWrapper) else ""
            delta = layer.get_delta_weight("default").detach()
            found[own] = delta.mT if getattr(layer, "fan_in_fan_out", False) else delta
    assert found.keys() == adapter.modules.keys()
    for name, delta in found.items():
        torch.testing.assert_close(adapter.modules[name].dense(), delta, rtol=1e-5, atol=1e-6)
    assert torch.equal(tiny.logits(on, prompts), plain)


@pytest.mark.parametrize("model_type", ["gpt2", "phi", "opt"])
def test_a_base_weight_is_what_its_layer_multiplies_with(model_type):
    on = tiny.subject(model_type)
    for name in tiny.wanted(on):
        module, weight = on.model.get_submodule(name), base_weight(on, name)
        d_out, d_in = on.shapes[name]
        assert weight.shape == (d_out, d_in) == linear_shape(module)
        x = torch.randn(3, d_in, generator=torch.Generator().manual_seed(0))
        bias = 0 if module.bias is None else module.bias
        torch.testing.assert_close(module(x), x @ weight.mT + bias, rtol=1e-4, atol=1e-5)


def test_conv1d_s_factors_are_written_so_that_peft_need_not_guess(tmp_path):
    from loratomy.training.fitting import fresh_adapter

    on = tiny.subject("gpt2")
    adapter = fresh_adapter(on, r=2, alpha=4, seed=0)
    tiny.plain_peft("gpt2", adapter, tmp_path)
    assert tiny.stored_config(tmp_path)["fan_in_fan_out"] is True


def test_blocks_side_by_side_have_no_residual_between_them():
    for kind, changes, has in (
        ("phi", {}, False),
        ("gpt_neox", {}, False),
        ("gpt_neox", {"use_parallel_residual": False}, True),
        ("gpt2", {}, True),
    ):
        model = tiny.model(kind, **changes)
        assert bool(mid_of(model, FAMILIES[kind])) == has
        check_family(model, FAMILIES[kind])


@pytest.mark.parametrize(
    ("model_type", "wrong"),
    [
        ("granite", {"logit_divisor": None}),
        ("granite", {"residual_factor": None}),
        ("olmo2", {"mlp_norm": "post_attention_layernorm"}),
        ("gpt2", {"mlp_norm": "ln_1"}),
        ("gpt_neox", {"parallel": ""}),
        ("phi", {"mlp_norm": "input_layernorm"}),
    ],
)
def test_a_row_that_does_not_fit_is_found(model_type, wrong):
    model = tiny.model(model_type)
    with pytest.raises(LoratomyError, match=r"does not fit this model"):
        check_family(model, replace(FAMILIES[model_type], **wrong))


def test_opt_with_its_norms_behind_the_blocks_is_refused_by_name():
    model = tiny.model("opt", do_layer_norm_before=False)
    with pytest.raises(LoratomyError, match=r"'opt'|final_layer_norm"):
        check_family(model, FAMILIES["opt"])


def test_opt_s_projections_around_the_layers_count():
    model = tiny.model("opt", word_embed_proj_dim=16)
    check_family(model, FAMILIES["opt"])
    with pytest.raises((LoratomyError, RuntimeError)):
        check_family(model, replace(FAMILIES["opt"], after_norm=""))


def test_the_tower_for_images_is_no_part_of_the_subject(tmp_path):
    on = tiny.subject("gemma3")
    assert any("vision_tower" in n for n, _ in on.model.named_modules())
    assert not [n for n in on.shapes if "vision" in n or "projector" in n]
    assert {"lm_head", "model.language_model.embed_tokens"} <= on.shapes.keys()
    assert on.limit == 64


def test_layers_of_a_mixture_without_experts_are_plain():
    on = tiny.subject("qwen3_moe", decoder_sparse_step=2)
    check_family(on.model, on.family)
    experts = [n for n in on.shapes if n.endswith("experts.down_proj")]
    assert experts == ["model.layers.1.mlp.experts.down_proj"]
