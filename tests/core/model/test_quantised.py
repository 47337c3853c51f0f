"""A quantised base: what its number format is called, and the shapes behind its packed weights."""

import json
import shutil

import pytest
import torch
from loratomy.core.adapter.factors import read_adapter
from loratomy.core.errors import LoratomyError
from loratomy.core.model.loading import load_subject
from loratomy.core.model.subject import weight_shapes

from ... import tiny

NF4 = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_compute_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "float32"),
        (NF4, "nf4 (compute bfloat16)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8 (compute float32)"),
        ({"quant_method": "gptq", "bits": 4}, "gptq (compute float32)"),
    ],
)
def test_the_number_format_says_how_weights_are_quantised(found, said):
    on = tiny.subject()
    if found:
        on.model.config.quantization_config = found
    assert on.dtype == said


def test_shapes_are_those_of_the_layer_however_its_weight_is_packed():
    on = tiny.subject()
    before = weight_shapes(on.model)
    layer = on.model.get_submodule("model.layers.0.mlp.up_proj")
    packed = torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8)
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    assert weight_shapes(on.model) == before


def test_another_dtype_than_it_computes_in_is_explained(make_base):
    base = make_base()
    path = base / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": NF4}))
    with pytest.raises(LoratomyError, match=r"quantised, nf4 \(compute bfloat16\).* --dtype flo"):
        load_subject(str(base), dtype="float32", device="cpu")


def test_a_base_in_nf4_carries_an_adapter(make_base, make_adapter, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    base = make_base(hidden_size=128, intermediate_size=256)
    adapter, folder = make_adapter(base, bare=True), tmp_path / "nf4"
    settings = {k: v for k, v in NF4.items() if k != "quant_method"}
    AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**settings), device_map="cpu"
    ).save_pretrained(folder)
    for path in base.iterdir():
        if not (folder / path.name).exists() and path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    on = load_subject(str(folder), device="cpu")
    assert on.dtype == "nf4 (compute bfloat16)"
    assert on.shapes == load_subject(str(base), device="cpu").shapes
    ids = torch.tensor([[5, 6, 7]])
    before = tiny.logits(on, ids)
    with on.attached({"x": read_adapter(adapter, on.shapes)}):
        assert (tiny.logits(on, ids) - before).abs().max() > 0.01
    assert torch.equal(tiny.logits(on, ids), before)
