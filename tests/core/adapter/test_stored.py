"""Adapters as trainers save them: read exactly as PEFT would, or called by what they are."""

import json
import shutil
import time

import pytest
import torch
from loratomy.core.adapter.factors import read_adapter
from loratomy.core.adapter.safety import check_folder
from loratomy.core.errors import AdapterError
from loratomy.core.model.loading import load_subject
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from .test_safety import assert_exact, our_deltas

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def subject(tiny_base):
    return load_subject(str(tiny_base), device="cpu")


def read(folder, on, **options):
    return read_adapter(folder, on.shapes, base=on.parameter, **options)


def logits_of_peft(base, folder):
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, folder).eval()(input_ids=IDS).logits


IDS = torch.arange(20, 44).reshape(2, 12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "targets", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"], ["lm_head", "embed_tokens"]]
)
def test_head_and_embedding_as_peft_stores_them(make_base, make_adapter, targets, tied):
    base = make_base(tie_word_embeddings=tied)
    folder = make_adapter(base, target_modules=targets)
    assert any(k.endswith("base_layer.weight") for k in load_file(folder / WEIGHTS))
    on = load_subject(str(base), device="cpu")
    adapter = read(folder, on)
    with on.attached({"x": adapter}), torch.no_grad():
        ours = on.model(input_ids=IDS).logits
    torch.testing.assert_close(ours, logits_of_peft(base, folder), rtol=1e-5, atol=1e-5)


def test_written_again_a_head_and_an_embedding_are_plain_peft(make_base, make_adapter, tmp_path):
    from loratomy.core.adapter.factors import write_adapter

    base = make_base()
    on = load_subject(str(base), device="cpu")
    first = make_adapter(base, target_modules=["lm_head", "embed_tokens", "v_proj"])
    write_adapter(read(first, on), tmp_path / "again", base=str(base))
    torch.testing.assert_close(
        logits_of_peft(base, tmp_path / "again"), logits_of_peft(base, first), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("modules", [["lm_head"], ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_weights_that_are_the_base_s_are_accepted(
    subject, tiny_base, make_adapter, modules, dtype
):
    folder = make_adapter(tiny_base, modules_to_save=modules)
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / WEIGHTS)
    assert len(read(folder, subject).modules) == 4


def changed(folder, change):
    tensors = load_file(folder / WEIGHTS)
    (key,) = [k for k in tensors if "lm_head" in k]
    tensors[key] = change(tensors[key])
    save_file(tensors, folder / WEIGHTS)
    return folder


def one_row(weight):
    weight = weight.clone()
    weight[7, 3] += 1e-3
    return weight


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_row, r"1 of 1,280 rows differ \(row 7\)"),
        (
            lambda w: torch.cat([w, w[:3]]),
            r"1,283 rows, 3 more than the base's 1,280 \(a vocabulary that was resized in "
            r"training\); the rows that both have are equal",
        ),
        (lambda w: w[:1000].clone(), "1,000 rows, 280 fewer"),
        (lambda w: w[:, :8].clone(), r"\(1280, 8\) against \(1280, 32\)"),
    ],
)
def test_a_whole_weight_that_differs_is_called_by_name(
    subject, tiny_base, make_adapter, change, said
):
    folder = changed(make_adapter(tiny_base, modules_to_save=["lm_head"]), change)
    with pytest.raises(AdapterError, match=f"lm_head.weight beside its factors.*{said}"):
        read(folder, subject)
    assert len(read(folder, subject, ignore_modules=["lm_head"]).modules) == 4


def test_without_a_base_a_copy_is_not_believed(subject, tiny_base, make_adapter):
    folder = make_adapter(tiny_base, modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match="no base to compare it with"):
        read_adapter(folder, subject.shapes)


@pytest.mark.parametrize(
    ("ranks", "alphas"),
    [
        ({r"^model\.layers\.0\.self_attn\.q_proj": 2}, {"down_proj": 3}),
        ({r"layers\.(0|1)\.self_attn\.[qk]_proj": 6, "q_proj": 2}, {r".*\.1\..*": 5}),
        ({"self.attn.q_proj": 3}, {"^q_proj": 9, "layers.1": 7}),
        ({r"^self_attn\.q_proj": 2, r"\d.mlp.down_proj": 5}, {"^model.layers.1.mlp.down_proj": 1}),
    ],
)
def test_regular_expressions_in_patterns_are_peft_s(tiny_base, make_adapter, ranks, alphas):
    assert_exact(tiny_base, make_adapter(tiny_base, rank_pattern=ranks, alpha_pattern=alphas), 4)


@pytest.mark.parametrize(
    ("settings", "modules"),
    [
        ({"layers_to_transform": [1], "layers_pattern": "layers"}, 2),
        ({"layers_to_transform": 0, "layers_pattern": ["h", "layers"]}, 2),
        ({"layers_to_transform": [0, 1], "layers_pattern": r"mod\w+\.layers"}, 4),
        ({"layers_to_transform": []}, 4),
    ],
)
def test_layers_pattern_is_peft_s(tiny_base, make_adapter, settings, modules):
    assert_exact(tiny_base, make_adapter(tiny_base, **settings), modules)


NULLS = dict.fromkeys(
    (
        *("bias", "rank_pattern", "alpha_pattern", "layers_pattern", "exclude_modules"),
        *("loftq_config", "eva_config", "corda_config", "megatron_config", "auto_mapping"),
        *("modules_to_save", "use_rslora", "use_dora", "fan_in_fan_out", "layer_replication"),
    )
)


@pytest.mark.parametrize(
    "config", [NULLS, {"loftq_config": {}, "eva_config": {}, "corda_config": {}}]
)
def test_fields_that_are_null_or_empty_mean_nothing(edited, tiny_base, tiny_adapter, config):
    ours = our_deltas(tiny_base, edited(**config))
    want = our_deltas(tiny_base, tiny_adapter)
    assert all(torch.equal(ours[n], want[n]) for n in want) and len(ours) == len(want)


def renamed(change):
    return lambda tensors: {change(k): v for k, v in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda k: k.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."),
        lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda k: k.replace("model.layers", "model.language_model.layers"),
        lambda k: k.replace("model.model.layers", "model.language_model.model.layers"),
    ],
)
def test_names_in_another_dress_are_the_same_adapter(edited, tiny_base, tiny_adapter, change):
    ours = our_deltas(tiny_base, edited(renamed(change)))
    want = our_deltas(tiny_base, tiny_adapter)
    assert ours.keys() == want.keys() and all(torch.equal(ours[n], want[n]) for n in want)


def test_names_of_a_tower_that_is_not_there_are_called(edited, tiny_base):
    folder = edited(
        lambda t: {
            k.replace("model.layers.1", "model.vision_tower.layers.1"): v for k, v in t.items()
        }
    )
    with pytest.raises(AdapterError, match=r"does not have: model\.vision_tower\.layers\.1\.mlp"):
        our_deltas(tiny_base, folder)


def test_two_adapters_in_one_file_are_named(edited, tiny_base):
    def both(tensors):
        one = {k.replace(".weight", ".good.weight"): v for k, v in tensors.items() if "q_proj" in k}
        return one | {
            k.replace(".weight", ".evil.weight"): v for k, v in tensors.items() if "down" in k
        }

    with pytest.raises(AdapterError, match=r"several adapters \(evil, good\)"):
        our_deltas(tiny_base, edited(both))


def as_mlx(source, folder, **parameters):
    """The same adapter as mlx-lm saves it: a ``[in, rank]``, b ``[rank, out]``, scale outside."""
    folder.mkdir()
    tensors = {
        k.removeprefix("base_model.model.")
        .replace("lora_A.weight", "lora_a")
        .replace("lora_B.weight", "lora_b"): v.mT.contiguous()
        for k, v in load_file(source / WEIGHTS).items()
    }
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "model": "mlx-community/tiny-4bit",
        "lora_parameters": {"rank": 4, "scale": 2.0, "dropout": 0.0, **parameters},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_mlx_s_files_are_the_same_adapter(tiny_base, tiny_adapter, tmp_path):
    ours = our_deltas(tiny_base, as_mlx(tiny_adapter, tmp_path / "mlx"))
    want = our_deltas(tiny_base, tiny_adapter)  # alpha 8 over rank 4 is MLX's scale 2
    assert ours.keys() == want.keys() and all(torch.equal(ours[n], want[n]) for n in want)


def test_mlx_s_other_kinds_are_named(tiny_adapter, tmp_path):
    folder = as_mlx(tiny_adapter, tmp_path / "mlx")
    config = json.loads((folder / "adapter_config.json").read_text()) | {"fine_tune_type": "dora"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"MLX adapter \('dora'\).*mlx_lm\.fuse"):
        check_folder(folder)
    config |= {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "alpha": 8}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"has no scale \(it has rank, alpha\); add the factor"):
        check_folder(folder)


def test_a_setting_that_nobody_knows_is_said(edited):
    with pytest.warns(UserWarning, match="use_hyper_rotation is no setting that PEFT knows"):
        check_folder(edited(use_hyper_rotation=True, another_switch=False))


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern"])
@pytest.mark.parametrize(
    "pattern",
    ["(" * 10_000 + ")" * 10_000, "a" * 5_000_000, "(" * 1900 + "a" + ")" * 1900, "(a+)+$" * 3],
)
def test_patterns_of_any_size_give_one_short_line_soon(edited, tiny_base, field, pattern):
    folder = edited(**{field: {pattern: 4} if field == "rank_pattern" else pattern})
    began = time.perf_counter()
    try:
        our_deltas(tiny_base, folder)
        assert len(pattern) < 100 or (field, pattern[0]) == ("rank_pattern", "a")  # a name, not had
    except AdapterError as error:
        assert len(str(error)) < 600 and "\n" not in str(error)
        assert field in str(error) or "no tensor" in str(error)
    assert time.perf_counter() - began < 5


def test_an_enormous_config_is_not_read(edited):
    folder = edited()
    with (folder / "adapter_config.json").open("r+b") as file:
        file.truncate(2**33)
    with pytest.raises(
        AdapterError, match=rf"adapter_config\.json: {2**33} bytes, where {2**24} are the most"
    ):
        check_folder(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
def test_a_pointer_of_git_lfs_is_called_so(edited, name):
    folder = edited()
    (folder / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    with pytest.raises(AdapterError, match=rf"{name} is a git-lfs pointer, not the file: git lfs"):
        check_folder(folder)


STATE = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def test_what_a_trainer_keeps_is_no_pickle_of_weights(edited):
    folder = edited()
    for name in STATE:
        (folder / name).write_bytes(b"x")
    assert check_folder(folder).shapes
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=rf"holds no {WEIGHTS} \(only what a trainer keeps"):
        check_folder(folder)


def test_a_pickle_comes_with_the_way_to_convert_it(edited, tiny_base, tiny_adapter):
    import re
    import shlex
    import subprocess
    import sys

    folder = edited()
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.bin.*never read") as caught:
        check_folder(folder)
    command = re.search(r"python -c .*", str(caught.value))
    assert command
    words = shlex.split(command[0])
    subprocess.run([sys.executable, *words[1:]], check=True)
    ours, want = (our_deltas(tiny_base, f) for f in (folder, tiny_adapter))
    assert all(torch.equal(ours[n], want[n]) for n in want)


def test_a_snapshot_in_the_hub_s_cache_is_a_folder_like_others(tiny_adapter, tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for i, name in enumerate((WEIGHTS, "adapter_config.json")):
        shutil.copyfile(tiny_adapter / name, repository / "blobs" / f"{i:040}")
        (snapshot / name).symlink_to(f"../../blobs/{i:040}")
    assert check_folder(snapshot).shapes
    other = tmp_path / "models--other--name" / "blobs"
    other.mkdir(parents=True)
    shutil.copyfile(tiny_adapter / WEIGHTS, other / "x")
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(other / "x")
    with pytest.raises(AdapterError, match="is a link out of its folder"):
        check_folder(snapshot)
    (snapshot / WEIGHTS).unlink()
    (snapshot / WEIGHTS).symlink_to(f"../../blobs/{9:040}")
    with pytest.raises(AdapterError, match="which is not there; fetch it again"):
        check_folder(snapshot)


@pytest.mark.parametrize("names", [("checkpoint-500", "checkpoint-1500"), ("default/last",)])
def test_the_parent_of_adapters_names_them(tiny_adapter, tmp_path, names):
    parent = tmp_path / "parent"
    for name in names:
        shutil.copytree(tiny_adapter, parent / name)
    with pytest.raises(AdapterError, match=rf"{names[0]}.*give one of them, e\.g\. .*{names[-1]}"):
        check_folder(parent)
