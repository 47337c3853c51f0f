from dataclasses import replace

import pytest
import torch
from loratomy.core.errors import LoratomyError
from loratomy.core.model.families import FAMILIES, check_family, family_of, logits_of

from ... import tiny


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_every_row_fits_its_model_and_leaves_it_alone(model_type):
    model = tiny.model(model_type)
    family = family_of(model.config)
    assert family is FAMILIES[model_type]
    on = tiny.subject(model_type)
    before, marks = tiny.state(on), tiny.marks(on)
    check_family(on.model, family)
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks
    for part in (*family.lora_modules, *family.lora_parameters):
        hits = [n for n in on.shapes if n.endswith("." + part)]
        assert len(hits) == len(on.layers), part


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_norm_and_head_of_the_last_residual_are_the_logits(model_type):
    on, prompts = tiny.subject(model_type), torch.tensor([[8, 9, 10, 11, 12, 13, 14]])
    seen = []
    hook = on.layers[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    want = tiny.logits(on, prompts)
    hook.remove()
    assert torch.equal(logits_of(on.model, on.family, seen[0]), want)


def test_the_soft_cap_counts():
    capped = tiny.subject("gemma2", final_logit_softcapping=0.5)
    check_family(capped.model, capped.family)
    with pytest.raises(LoratomyError, match="differ from the model's logits"):
        check_family(capped.model, replace(capped.family, logit_softcap=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": "model.blocks"},
        {"attention": "attn"},
        {"mlp": "ffn"},
        {"norm": "model.final_norm"},
        {"head": "output"},
        {"lora_modules": ("q_proj", "c_attn")},
        {"lora_parameters": ("mlp.experts.gate_up_proj",)},
    ],
)
def test_a_wrong_path_is_named(wrong):
    path = next(iter(wrong.values()))
    path = path if isinstance(path, str) else path[-1]
    with pytest.raises(LoratomyError, match=path):
        check_family(tiny.model("llama"), replace(FAMILIES["llama"], **wrong))


def test_a_norm_that_is_not_the_final_one_is_found():
    wrong = replace(FAMILIES["llama"], norm="model.layers.0.input_layernorm")
    model = tiny.model("llama")
    torch.nn.init.normal_(model.model.norm.weight)
    with pytest.raises(LoratomyError, match="does not fit this model"):
        check_family(model, wrong)


def test_an_unknown_model_type_says_what_to_add():
    config = tiny.config("llama")
    config.model_type = "gptneo9"
    with pytest.raises(LoratomyError, match=r"'gptneo9'.*add a row.*core/model/families\.py"):
        family_of(config)
