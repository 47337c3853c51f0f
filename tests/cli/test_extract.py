"""`loratomy extract`: merged models on disk back to adapter folders, and what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from .cases import refused, snapshot

WEIGHTS = "model.safetensors"


def merge(base, adapter, folder, **saving):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, adapter)
    model.merge_and_unload().save_pretrained(folder, **saving)
    return folder


@pytest.fixture(scope="session")
def merged(tiny_base, tiny_adapter, tmp_path_factory):
    """`tiny_adapter` merged into `tiny_base` by PEFT: q_proj and down_proj, rank 4."""
    return merge(tiny_base, tiny_adapter, tmp_path_factory.mktemp("merged") / "model")


@pytest.fixture
def edited_model(merged, tmp_path):
    """Makes a copy of the merged model with other tensors or another config."""

    def edit(tensors=None, **config):
        folder = shutil.copytree(merged, tmp_path / "edited")
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        if tensors:
            save_file(tensors(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})
        return folder

    return edit


def changes(base, adapter):
    """Module -> dense dW of an adapter folder."""
    from loratomy.core.adapter.factors import read_adapter
    from loratomy.core.model.checkpoints import open_checkpoint

    found = read_adapter(adapter, open_checkpoint(base).linear)
    return {name: f.dense() for name, f in found.modules.items()}


def same(base, one, other):
    here, there = changes(base, one), changes(base, other)
    assert here.keys() == there.keys()
    return max(float((here[n] - there[n]).norm() / there[n].norm()) for n in here) < 1e-5


def test_a_merged_model_is_an_adapter_again(cli, tiny_base, tiny_adapter, merged, tmp_path):
    out = tmp_path / "out"
    result = cli("extract", "--base", tiny_base, "--merged", merged, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert same(tiny_base, out, tiny_adapter)
    assert "q_proj" in result.stdout and "down_proj" in result.stdout
    assert "v_proj" not in result.stdout
    record = json.loads((out / "extraction.json").read_text())
    assert record["record"] == "Extraction" and len(record["found"]) == 4
    assert {m["rank"] for m in record["found"]} == {4} and record["unchanged"] == 11
    assert record["base"] == str(tiny_base) and record["ignored"] == []
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp-")]


def test_the_adapter_goes_into_the_other_commands(cli, tiny_base, merged, tmp_path, opened):
    out = tmp_path / "extracted"
    assert cli("extract", "--base", tiny_base, "--merged", merged, "--out", out).exit_code == 0
    assert opened(adapter=out).exit_code == 0


def test_shards_are_read_like_one_file(cli, tiny_base, tiny_adapter, tmp_path):
    folder = merge(tiny_base, tiny_adapter, tmp_path / "shards", max_shard_size="30KB")
    assert not (folder / WEIGHTS).exists() and len(list(folder.glob("*.safetensors"))) > 2
    out = tmp_path / "out"
    made = cli("extract", "--base", tiny_base, "--merged", folder, "--out", out, "--json")
    assert made.exit_code == 0 and same(tiny_base, out, tiny_adapter)
    assert json.loads(made.stdout)["found"][0]["rank"] == 4
    index = folder / "model.safetensors.index.json"
    body = json.loads(index.read_text())
    key = next(iter(body["weight_map"]))
    for file, said in (("../x.safetensors", "not in its folder"), ("gone.safetensors", "gone")):
        index.write_text(json.dumps({**body, "weight_map": {**body["weight_map"], key: file}}))
        command = ("extract", "--base", tiny_base, "--merged", folder, "--out", tmp_path / "no")
        refused(cli(*command), said)


def test_wren_is_a_base_though_it_is_stored_shorter_than_the_merged_model(
    cli, tmp_path, make_adapter
):
    from loratomy.training.wren import wren_path

    adapter = make_adapter(wren_path(), target_modules=["v_proj"], r=3)
    folder = merge(wren_path(), adapter, tmp_path / "merged")
    out = tmp_path / "out"
    assert cli("extract", "--base", "wren", "--merged", folder, "--out", out).exit_code == 0
    assert same(wren_path(), out, adapter)


def test_what_stands_is_not_overwritten(cli, tiny_base, merged, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    command = ("extract", "--base", tiny_base, "--merged", merged, "--out")
    refused(cli(*command, out, "--fresh"), "no extraction; give another --out")
    assert snapshot(out) == {"thesis.txt": b"mine"}
    assert cli(*command, tmp_path / "x").exit_code == 0
    before = snapshot(tmp_path / "x")
    refused(cli(*command, tmp_path / "x"), "--fresh to replace")
    assert cli(*command, tmp_path / "x", "--fresh").exit_code == 0
    assert snapshot(tmp_path / "x") == before


def shifted(*names):
    return lambda tensors: {n: t + 0.1 * (n in names) for n, t in tensors.items()}


def test_changes_beyond_lora_are_named_and_can_be_left_out(cli, tiny_base, edited_model, tmp_path):
    names = ("model.embed_tokens.weight", "model.norm.weight")
    folder, out = edited_model(shifted(*names)), tmp_path / "out"
    command = ("extract", "--base", tiny_base, "--merged", folder, "--out", out)
    refused(cli(*command), *names, "LoRA cannot express", "--ignore-module model.embed_tokens")
    assert not out.exists()
    result = cli(*command, "--ignore-module", "embed_tokens", "--ignore-module", "norm")
    assert result.exit_code == 0 and f"left out as requested: {', '.join(names)}" in result.stderr


def test_an_untied_head_is_a_linear_layer_like_others(cli, tiny_base, edited_model, tmp_path):
    def change(tensors):
        head = tensors["lm_head.weight"]
        pair = torch.outer(torch.arange(len(head)) / 1e3, torch.ones(head.shape[1]))
        return tensors | {"lm_head.weight": head + pair}

    folder, out = edited_model(change), tmp_path / "out"
    command = ("extract", "--base", tiny_base, "--merged", folder, "--out", out)
    assert cli(*command).exit_code == 0
    assert torch.linalg.matrix_rank(changes(tiny_base, out)["lm_head"], rtol=1e-4) == 1


def test_a_tied_head_is_the_embedding(cli, make_base, tmp_path):
    base = make_base("tied", tie_word_embeddings=True)
    folder = shutil.copytree(base, tmp_path / "merged")
    tensors = load_file(folder / WEIGHTS)
    assert "lm_head.weight" not in tensors
    embedding = "model.embed_tokens.weight"
    save_file(shifted(embedding)(tensors), folder / WEIGHTS, {"format": "pt"})
    command = ("extract", "--base", base, "--merged", folder, "--out", tmp_path / "out")
    refused(cli(*command), f"{embedding} changed, which LoRA cannot express")
    other = {**tensors, "lm_head.weight": tensors[embedding] + 1}
    save_file(other, folder / WEIGHTS, {"format": "pt"})
    refused(cli(*command), "lm_head.weight differs from model.embed_tokens.weight, its config ti")


def test_models_that_cannot_be_read(cli, tiny_base, tiny_adapter, merged, edited_model, tmp_path):
    def tried(model):
        out = tmp_path / "out"
        result = cli("extract", "--base", tiny_base, "--merged", model, "--out", out)
        assert not out.exists()
        return result

    refused(tried(tiny_adapter), "it is an adapter already")
    refused(tried(tmp_path / "nowhere"), "nowhere", "neither a model's folder nor a hub id")
    refused(tried("some/model"), "cannot fetch 'some/model'", "give a local folder")
    refused(tried(tiny_base), "bit by bit; there is no adapter")
    pickled = shutil.copytree(merged, tmp_path / "pickled")
    (pickled / WEIGHTS).rename(pickled / "pytorch_model.bin")
    refused(tried(pickled), "pickle (pytorch_model.bin), which can run code")
    cut = shutil.copytree(merged, tmp_path / "cut")
    (cut / WEIGHTS).write_bytes((merged / WEIGHTS).read_bytes()[:-100])
    refused(tried(cut), "truncated")


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        (None, {"model_type": "mistral"}, "the base is a llama, the merged model a mistral"),
        (None, {"quantization_config": {"quant_method": "x"}}, "is quantised"),
        (None, {"auto_map": {"AutoConfig": "x.Y"}}, "code of its own"),
        (None, {"intermediate_size": 64}, "its config calls for (32, 64)"),
        (lambda t: {n: v for n, v in t.items() if "k_proj" not in n}, {}, "no tensor model.laye"),
        (
            lambda t: t | {"model.extra": t["model.norm.weight"] + 1},
            {},
            "model.extra, which a llama",
        ),
        (lambda t: {n: v.half() for n, v in t.items()}, {}, "add --other-dtype"),
        (lambda t: {n: v / (v * ("layers.1.mlp.up" not in n)) for n, v in t.items()}, {}, "NaN"),
    ],
)
def test_models_that_do_not_fit(cli, tiny_base, edited_model, tmp_path, tensors, config, said):
    folder, out = edited_model(tensors, **config), tmp_path / "out"
    extra = ("--ignore-module", "norm") if said == "NaN" else ()
    extra += ("--ignore-module", "embed_tokens") if said == "NaN" else ()
    command = ("extract", "--base", tiny_base, "--merged", folder, "--out", out)
    refused(cli(*command, *extra), said)
    assert not out.exists() and not list(tmp_path.glob(".tmp-*"))


def test_configs_that_differ_are_said(cli, tiny_base, edited_model, tmp_path):
    folder = edited_model(rms_norm_eps=0.5)
    command = ("extract", "--base", tiny_base, "--merged", folder, "--out", tmp_path / "out")
    result = cli(*command)
    assert result.exit_code == 0
    assert "rms_norm_eps is 1e-06 in the base's config and 0.5 in the merged" in result.stderr
