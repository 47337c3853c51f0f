"""Weight changes read from folders that PEFT wrote, against PEFT's own, in float64."""

import numpy as np
import pytest
import torch
from loratomy.analysis.weights.difference import difference
from loratomy.analysis.weights.spectra import spectra
from loratomy.core.adapter.factors import read_adapter
from loratomy.core.errors import AdapterError
from loratomy.core.model.subject import weight_shapes
from peft import LoraConfig, PeftModel, get_peft_model

from ... import tiny

LINEAR = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
FUSED = {
    "target_modules": ["q_proj", "o_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}
PATTERNS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank by kind": {"rank_pattern": {"q_proj": 6}},
    "rank and alpha by name": {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 5},
        "alpha_pattern": {"model.layers.0.self_attn.q_proj": 3, "q_proj": 20},
    },
    "all with rslora": {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 7, "down_proj": 2},
        "alpha_pattern": {"down_proj": 1.5, "layers.2.self_attn.q_proj": 30},
    },
    "some layers": {"layers_to_transform": [0, 2], "alpha_pattern": {"q_proj": 5}},
}
FUSED_PATTERNS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "listed the other way round": {"target_parameters": FUSED["target_parameters"][::-1]},
    "patterns": {
        "use_rslora": True,
        "rank_pattern": {"mlp.experts.down_proj": 2, "q_proj": 5},
        "alpha_pattern": {"gate_up_proj": 3, "o_proj": 1.5},
    },
    "one of them": {"target_parameters": ["mlp.experts.down_proj"]},
}
MATRIX = [
    *(("llama", LINEAR | changes, label) for label, changes in PATTERNS.items()),
    *(("gemma2", LINEAR | PATTERNS[label], label) for label in ("plain", "all with rslora")),
    *(("mixtral", FUSED | changes, label) for label, changes in FUSED_PATTERNS.items()),
]


def written(model_type: str, settings: dict, folder, *, seed: int = 1):
    """An adapter that PEFT made, filled and wrote; and the shapes of its base."""
    torch.manual_seed(seed)
    config = LoraConfig(**({"r": 4, "lora_alpha": 12, "init_lora_weights": False} | settings))
    made = get_peft_model(tiny.model(model_type), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in made.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    made.save_pretrained(folder)
    return weight_shapes(tiny.model(model_type))


def own_deltas(peft_model) -> dict[str, torch.Tensor]:
    """PEFT's `get_delta_weight` of every layer that has an adapter, by our names."""
    out = {}
    for name, layer in peft_model.base_model.model.named_modules():
        if "default" not in getattr(layer, "lora_A", {}):
            continue
        stem = name.replace(".base_layer", "")
        key = f"{stem}.{layer.parameter_name}" if hasattr(layer, "parameter_name") else stem
        out[key] = layer.get_delta_weight("default").detach()
    return out


@pytest.mark.filterwarnings("ignore:.*did not match any targeted module")  # of fused: they do
@pytest.mark.parametrize(("model_type", "settings", "label"), MATRIX,
                         ids=[f"{m}-{label}" for m, _, label in MATRIX])  # fmt: skip
def test_changes_are_pefts_own_and_what_its_merge_adds(model_type, settings, label, tmp_path):
    shapes = written(model_type, settings, tmp_path)
    ours = read_adapter(tmp_path, shapes)
    loaded = PeftModel.from_pretrained(tiny.model(model_type), tmp_path).double()
    theirs = own_deltas(loaded)
    assert set(ours.modules) == set(theirs)
    before = {n: p.detach() for n, p in tiny.model(model_type).double().named_parameters()}
    after = dict(loaded.merge_and_unload().named_parameters())
    for name, f in ours.modules.items():
        change = f.scaling * (f.b.double() @ f.a.double())
        size = float(change.norm())
        assert float((change - theirs[name]).norm()) <= 1e-6 * size
        key = name if name in before else f"{name}.weight"
        assert float((after[key] - before[key] - change).norm()) <= 1e-6 * size > 0
        changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {n if n in before else f"{n}.weight" for n in ours.modules}


@pytest.mark.filterwarnings("ignore:.*did not match any targeted module")
@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_spectra_and_difference_are_those_of_pefts_changes(model_type, tmp_path):
    base = {"llama": LINEAR, "mixtral": FUSED}[model_type]
    last = {"llama": PATTERNS["all with rslora"], "mixtral": FUSED_PATTERNS["patterns"]}
    settings = (base, base | last[model_type])
    adapters, deltas = [], []
    for i, setting in enumerate(settings):
        shapes = written(model_type, setting, tmp_path / str(i), seed=i + 1)
        adapters.append(read_adapter(tmp_path / str(i), shapes))
        loaded = PeftModel.from_pretrained(tiny.model(model_type), tmp_path / str(i)).double()
        deltas.append(own_deltas(loaded))
    found, apart = spectra(adapters[1], name="poisoned"), difference(*adapters)
    assert found.modules == apart.modules
    for row, name in enumerate(found.modules):
        stem, _, expert = name.partition("#e")
        pick = (int(expert),) if expert else ()
        s = torch.linalg.svdvals(deltas[1][stem][pick]).numpy()
        width = found.singular_values.shape[1]
        assert found.singular_values[row] == pytest.approx(s[:width], rel=1e-6, abs=1e-6 * s[0])
        gap = torch.linalg.svdvals((deltas[1][stem] - deltas[0][stem])[pick]).numpy()
        assert apart.difference_norm[row] == pytest.approx(np.linalg.norm(gap), rel=1e-6)
        width = apart.singular_values.shape[1]
        assert apart.singular_values[row] == pytest.approx(gap[:width], rel=1e-6, abs=1e-6 * gap[0])


def test_what_is_no_sum_of_directions_is_refused_by_name_on_loading(tmp_path):
    shapes = written("llama", LINEAR | {"use_dora": True}, tmp_path)
    with pytest.raises(AdapterError, match="use_dora is not supported"):
        read_adapter(tmp_path, shapes)


def test_fan_in_fan_out_means_nothing_on_linear_layers(tmp_path):
    """PEFT resets it there, and turns GPT-2's layers whatever it says."""
    shapes = written("llama", LINEAR, tmp_path)
    before = read_adapter(tmp_path, shapes).modules
    path = tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"fan_in_fan_out": false', '"fan_in_fan_out": true'))
    assert '"fan_in_fan_out": true' in path.read_text()
    after = read_adapter(tmp_path, shapes).modules
    assert all(torch.equal(after[n].a, f.a) for n, f in before.items())
