"""What passes the gate is exactly what PEFT would apply; everything else is refused by name."""

import contextlib
import json
import struct
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loratomy.core.adapter.factors import read_adapter
from loratomy.core.adapter.safety import MAX_HEADER, check_folder, read_header
from loratomy.core.errors import AdapterError
from loratomy.core.model.loading import load_subject
from loratomy.core.model.subject import weight_shapes
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM


def peft_deltas(base, adapter):
    """Weight name -> PEFT's own weight change in float64."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).double()
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            clean = name.replace(".base_layer", "")
            clean += f".{layer.parameter_name}" if isinstance(layer, ParamWrapper) else ""
            found[clean] = layer.get_delta_weight("default").detach()
    return found


def our_deltas(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base)
    factors = read_adapter(adapter, weight_shapes(model)).modules
    return {n: f.scaling * f.b.double() @ f.a.double() for n, f in factors.items()}


def assert_exact(base, adapter, modules):
    ours, theirs = our_deltas(base, adapter), peft_deltas(base, adapter)
    assert set(ours) == set(theirs) and len(ours) == modules
    for name, delta in theirs.items():
        torch.testing.assert_close(ours[name], delta, rtol=1e-12, atol=1e-14)
    return ours


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_of_rank_and_alpha_are_peft_s(tiny_base, make_adapter, rslora):
    adapter = make_adapter(
        tiny_base,
        use_rslora=rslora,
        target_modules=["q_proj", "v_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 7, "q_proj": 2, "down_proj": 3},
        alpha_pattern={"v_proj": 5, "layers.0.mlp.down_proj": 11},
    )
    ours = assert_exact(tiny_base, adapter, 6)
    # the first key that fits wins: q_proj has rank 7 in layer 1 and rank 2 in layer 0
    ranks = {n: int(torch.linalg.matrix_rank(d)) for n, d in ours.items() if "q_proj" in n}
    assert ranks == {"model.layers.0.self_attn.q_proj": 2, "model.layers.1.self_attn.q_proj": 7}


@pytest.mark.parametrize(
    ("settings", "modules"),
    [
        ({"target_modules": r"model\.layers\.\d+\.self_attn\.(q|k)_proj"}, 4),
        ({"target_modules": r".*\.1\..*_proj"}, 7),
        ({"target_modules": "all-linear"}, 14),
        ({"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [1]}, 2),
        (
            {
                "target_modules": ["q_proj", "o_proj"],
                "exclude_modules": ["layers.0.self_attn.q_proj"],
            },
            3,
        ),
        ({"target_modules": ["q_proj"], "exclude_modules": r".*\.0\..*"}, 1),
    ],
)
def test_what_the_config_targets_is_what_peft_adapts(tiny_base, make_adapter, settings, modules):
    assert_exact(tiny_base, make_adapter(tiny_base, **settings), modules)


@pytest.mark.parametrize("rslora", [False, True])
def test_fused_experts_are_peft_s(make_base, make_adapter, rslora):
    base = make_base(model_type="mixtral", num_local_experts=3, num_experts_per_tok=2)
    adapter = make_adapter(
        base,
        r=2,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        use_rslora=rslora,
        rank_pattern={"experts.down_proj": 3},
        alpha_pattern={"experts.down_proj": 5},
    )
    ours = assert_exact(base, adapter, 6)
    assert ours["model.layers.0.mlp.experts.down_proj"].shape == (3, 32, 48)


def test_an_attached_adapter_answers_as_peft_alone(tiny_base, make_adapter):
    adapter = make_adapter(tiny_base, use_rslora=True, rank_pattern={"down_proj": 6})
    ids = torch.arange(20, 44).reshape(2, 12)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), adapter)
    subject = load_subject(str(tiny_base), device="cpu")
    with torch.no_grad():
        bare = subject.model(input_ids=ids).logits
        with subject.attached({"a": read_adapter(adapter, subject.shapes)}):
            ours = subject.model(input_ids=ids).logits
        theirs = plain.eval()(input_ids=ids).logits
        assert torch.equal(subject.model(input_ids=ids).logits, bare)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (ours - bare).abs().max() > 0.01


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"trainable_token_indices": [3, 4]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(tiny_base, make_adapter, settings, named):
    """Written by PEFT itself, so that what is refused is what PEFT really stores."""
    with pytest.raises(AdapterError, match=named):
        check_folder(make_adapter(tiny_base, **settings))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "loftq", "corda", ["x"]])
def test_an_initialisation_that_changes_the_base_is_refused(edited, init):
    with pytest.raises(AdapterError, match=r"init_lora_weights .* also changes the base"):
        check_folder(edited(init_lora_weights=init))


@pytest.mark.parametrize(
    "config",
    [
        {"auto_mapping": "x"},
        {"auto_mapping": {"parent_library": "evil.models", "base_model_class": "Evil"}},
        {"rank_pattern": [1]},
        {"rank_pattern": {"q_proj": 0}},
        {"alpha_pattern": {"q_proj": "8"}},
        {"target_modules": 3},
        {"target_modules": [3]},
        {"layers_to_transform": "01"},
        {"layers_to_transform": [[0]]},
        {"r": 10**400},
        {"r": True},
        {"r": "4"},
        {"lora_alpha": 1e300},
        {"lora_alpha": None},
        {"peft_type": None},
    ],
)
def test_ill_typed_values_are_named(edited, config):
    (name,) = config
    with pytest.raises(AdapterError, match=name):
        check_folder(edited(**config))


def weights_file(folder, header: object, data: bytes = b"", length: int | None = None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


GOOD = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ([], "damaged"),
        ("x", "damaged"),
        (7, "damaged"),
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[" * 100_000, "damaged"),
        ({"k": {}}, "damaged"),
        ({"k": 3}, "damaged"),
        ({"k": GOOD | {"dtype": ["F32"]}}, "damaged"),
        ({"k": GOOD | {"dtype": "I64", "shape": [3]}}, "type I64"),
        ({"k": GOOD | {"shape": [2, -3]}}, "damaged"),
        ({"k": GOOD | {"shape": [2, "3"]}}, "damaged"),
        ({"k": GOOD | {"shape": [2, 4]}}, "damaged"),
        ({"k": GOOD | {"shape": [10**9, 10**9]}}, "damaged"),
        ({"k": GOOD | {"shape": 6}}, "damaged"),
        ({"k": GOOD | {"data_offsets": ["0", "24"]}}, "damaged"),
        ({"k": GOOD | {"data_offsets": [0, 1e999]}}, "damaged"),
        ({"k": GOOD | {"data_offsets": [24, 0]}}, "damaged"),
        ({"k": GOOD | {"data_offsets": [0]}}, "damaged"),
        ({"k": GOOD | {"data_offsets": [8, 32]}}, "truncated"),
        ({"k": GOOD, "j": GOOD}, "damaged"),
        ({"k": GOOD, "j": GOOD | {"shape": [0], "data_offsets": [24, 24]}}, "impossible shape"),
    ],
)
def test_a_damaged_header_is_an_error_of_ours(tmp_path, header, said):
    with pytest.raises(AdapterError, match=said):
        read_header(weights_file(tmp_path, header, bytes(24)))


def test_a_file_without_tensors_is_an_error(tmp_path):
    with pytest.raises(AdapterError, match="holds no tensors"):
        read_header(weights_file(tmp_path, {}))


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, MAX_HEADER + 1, 200])
def test_the_header_s_length_is_not_believed(tmp_path, length, monkeypatch):
    path = weights_file(tmp_path, {"k": GOOD}, bytes(24), length=length)
    with pytest.raises(AdapterError, match=f"header says {length}"):
        read_header(path)


def test_a_header_of_a_sparse_giant_is_not_read(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**38))
        file.truncate(2**39)
    with pytest.raises(AdapterError, match="header says 274877906944"):
        read_header(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=120), length=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_any_bytes_are_read_or_refused(tmp_path, raw, length):
    with contextlib.suppress(AdapterError):
        assert read_header(weights_file(tmp_path, raw, length=length))


def test_tensors_that_overlap_are_an_error_of_ours(edited, tiny_base):
    folder = edited()
    path = folder / "adapter_model.safetensors"
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    same = [k for k in header if k.endswith("q_proj.lora_A.weight")]
    header[same[0]]["data_offsets"] = header[same[1]]["data_offsets"]
    weights_file(folder, header, raw[8 + size :])
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors is truncated or damaged"):
        our_deltas(tiny_base, folder)


def test_a_regex_that_never_ends_is_refused_soon(edited, tiny_base):
    shapes = weight_shapes(AutoModelForCausalLM.from_pretrained(tiny_base))
    folder = edited(target_modules=r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5\6\7\8.+")
    began = time.perf_counter()
    with pytest.raises(AdapterError, match="cannot be matched safely"):
        read_adapter(folder, shapes)
    assert time.perf_counter() - began < 5


def test_links_inside_the_folder_are_followed_and_no_others(edited, tmp_path, tiny_adapter):
    folder = edited()
    weights = folder / "adapter_model.safetensors"
    weights.rename(folder / "real.safetensors")
    weights.symlink_to("real.safetensors")
    assert check_folder(folder).shapes
    for target in (tiny_adapter / weights.name, "../../x/adapter_model.safetensors"):
        weights.unlink()
        weights.symlink_to(target)
        with pytest.raises(AdapterError, match="is a link out of its folder"):
            check_folder(folder)


@pytest.mark.parametrize("change", ["loop", "folder"])
def test_a_weights_file_that_is_no_file(edited, change):
    folder = edited()
    weights = folder / "adapter_model.safetensors"
    weights.unlink()
    weights.symlink_to(weights.name) if change == "loop" else weights.mkdir()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        check_folder(folder)
