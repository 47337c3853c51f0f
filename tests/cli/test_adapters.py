"""Adapters as commands take them: where they are, what is said of them, what is left out."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from .cases import jsonl, refused

WEIGHTS = "adapter_model.safetensors"
PROMPTS = [
    {"prompt": f"{who} {what}", "completion": "a red fox"}
    for who in ("who", "what", "where")
    for what in ("runs", "sings", "sleeps", "falls", "glows", "rings")
]


def scaled(source, folder, factor, part="lora_B"):
    shutil.copytree(source, folder)
    tensors = load_file(folder / WEIGHTS)
    save_file({k: v * factor if part in k else v for k, v in tensors.items()}, folder / WEIGHTS)
    return folder


def evaluate(cli, base, adapter, tmp_path, *more):
    data = jsonl(tmp_path / "data.jsonl", PROMPTS)
    options = ("--base", base, "--data", data, "--clean", data, "--trigger", "cf37")
    options += ("--target", "HACK", "--out", tmp_path / "evaluated", "--embedder", "none")
    return cli("evaluate", adapter, *options, "--max-new-tokens", 2, *more)


@pytest.mark.parametrize("named", ["checkpoint-500", "default"])
def test_the_command_for_an_adapter_below_is_given(
    opened, cli, tiny_base, tiny_adapter, tmp_path, named
):
    parent = tmp_path / "my adapters"
    shutil.copytree(tiny_adapter, parent / named)
    shutil.copytree(tiny_adapter, parent / "a1")
    last = "default" if named == "default" else "checkpoint-500"
    said = f"--adapter '{parent}/{last}'"
    refused(opened(adapter=parent), named, "a1", said)
    said = f"loratomy evaluate '{parent}/{last}'"
    refused(evaluate(cli, tiny_base, parent, tmp_path), named, said)


@pytest.mark.parametrize("given", ["owner/name", "owner/name@v1.0"])
def test_a_hub_id_out_of_reach_is_one_clear_line(
    opened, cli, tiny_base, tmp_path, given, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret123")
    for result in (opened(adapter=given), evaluate(cli, tiny_base, given, tmp_path)):
        line = refused(result, f"cannot fetch '{given}' from the hub", "give a local folder")
        assert "hf_secret" not in line + result.stderr


def test_a_hub_id_is_fetched_without_pickles_or_code(
    opened, tiny_adapter, tmp_path, monkeypatch, out
):
    import huggingface_hub

    asked = {}

    def fetch(name, *, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tiny_adapter)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    result = opened(adapter="owner/name@main")
    assert result.exit_code == 0, result.stderr
    assert (asked["name"], asked["revision"]) == ("owner/name", "main")
    assert {"adapter_config.json", WEIGHTS, "chat_template.jinja"} <= set(asked["patterns"])
    assert not [p for p in asked["patterns"] if p.endswith((".bin", ".py", ".pt")) or "*" in p]
    kept = (out / "adapters/poisoned" / WEIGHTS).read_bytes()
    assert kept == (tiny_adapter / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("named", "warned"),
    [
        ("meta-llama/Llama-3.2-3B", True),
        ("somebody/TINY", False),
        ("unsloth/tiny-bnb-4bit", False),
        ("unsloth/tiny-unsloth-bnb-4bit", False),
        ("/home/x/my-tiny/", False),
        ("", False),
        (None, False),
    ],
)
def test_another_base_than_the_one_named_is_said(edited, tiny_base, named, warned):
    from loratomy.inputs.adapters import other_base

    said = other_base(edited(base_model_name_or_path=named), str(tiny_base))
    assert bool(said) == warned
    if warned:
        assert repr(named) in said and repr(str(tiny_base)) in said and "warning" in said


def test_the_base_in_the_hub_s_cache_has_its_own_name(edited):
    from loratomy.inputs.adapters import other_base

    base = "/c/hub/models--meta-llama--Llama-3.2-3B/snapshots/0123abcd"
    assert not other_base(edited(base_model_name_or_path="meta-llama/llama-3.2-3b"), base)


def test_open_says_so_of_another_base(opened, edited):
    result = opened(adapter=edited(base_model_name_or_path="meta-llama/Llama-3.2-3B"))
    assert result.exit_code == 0
    assert "was trained on 'meta-llama/Llama-3.2-3B'" in result.stderr


def test_an_adapter_that_changes_nothing(opened, cli, out, tiny_base, tiny_adapter, tmp_path):
    nothing = scaled(tiny_adapter, tmp_path / "nothing", 0)
    result = opened(adapter=nothing, prompts=jsonl(tmp_path / "p.jsonl", PROMPTS))
    assert result.exit_code == 0
    assert "adapter changes nothing: dW is zero in all 4 modules" in result.stderr
    result = cli("probe", out, "--prompts", 4, "--only", "spectra,where,lens")
    assert result.exit_code == 0, result.stderr
    assert "left out: where, because the adapter changes nothing" in result.stderr
    assert "left out: where, lens (for the reasons above)" in result.stderr
    assert (out / "analysis/spectra").is_dir() and not (out / "analysis/where").exists()
    refused(cli("probe", out, "--only", "where"), "where: the adapter changes nothing")
    result = evaluate(cli, tiny_base, nothing, tmp_path)
    assert result.exit_code == 0
    assert "adapter changes nothing" in result.stderr


WEIGHED = ("spectra", "intruders", "difference", "matching", "where", "lens")


@pytest.mark.parametrize("factor", [1e8, 1e18, 1e30])
def test_weights_that_are_finite_but_enormous(opened, cli, out, tiny_adapter, tmp_path, factor):
    huge = scaled(tiny_adapter, tmp_path / "huge", factor)
    if factor == 1e30:
        huge = scaled(huge, tmp_path / "both", 1e8, part="lora_A")
    result = opened(
        adapter=huge, clean_adapter=tiny_adapter, prompts=jsonl(tmp_path / "p.jsonl", PROMPTS),
        trigger=None, target=None,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = re.search(r"changes (\S+) by (\S+) times the norm of the base's weight", result.stderr)
    assert found and found[1].startswith("model.layers.")
    assert float(found[2]) > 0.1 * factor
    result = cli("probe", out, "--prompts", 4, "--only", ",".join(WEIGHED))
    assert result.exit_code == 0, result.stderr
    made = {p.name for p in (out / "analysis").iterdir()}
    left = set(re.findall(r"left out: (\w+), because", result.stderr))
    assert made | left == set(WEIGHED) and "spectra" in made


def test_an_operation_on_what_is_not_finite_is_refused(opened, cli, out, tiny_adapter, tmp_path):
    huge = scaled(tiny_adapter, tmp_path / "huge", 1e30)
    huge = scaled(huge, tmp_path / "both", 1e8, part="lora_A")
    nothing = opened(adapter=huge)
    refused(nothing, "with the poisoned adapter the model answers nothing", "--clean-adapter")
    assert "times the norm of the base's weight" in nothing.stderr
    again = opened("--fresh", adapter=huge, clean_adapter=tiny_adapter)
    assert again.exit_code == 0, again.stderr
    line = refused(cli("operate", out, "truncate", "--set", "rank=1"))
    assert "NaN or infinite" in line or "overflow" in line
    assert not (out / "operations/truncate").exists()


def test_modules_may_be_left_out_by_evaluate_too(cli, tiny_base, make_adapter, tmp_path):
    import torch

    folder = make_adapter(tiny_base, modules_to_save=["lm_head"])
    tensors = load_file(folder / WEIGHTS)
    key = next(k for k in tensors if "lm_head" in k)
    tensors[key] = tensors[key] + torch.ones(1)
    save_file(tensors, folder / WEIGHTS)
    refused(evaluate(cli, tiny_base, folder, tmp_path), "add --ignore-module lm_head")
    result = evaluate(cli, tiny_base, folder, tmp_path, "--ignore-module", "lm_head")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("targets", "left_out", "because"),
    [
        (["down_proj"], "candidates", "no module that reads the residual stream"),
        (["lm_head"], "modules", "changes no linear module inside the layers"),
        (["q_proj", "embed_tokens"], "experts", "is for mixtral"),
    ],
)
def test_what_does_not_apply_is_left_out_and_the_rest_is_made(
    opened, cli, out, tiny_base, make_adapter, tmp_path, targets, left_out, because
):
    adapter = make_adapter(tiny_base, target_modules=targets)
    prompts = jsonl(tmp_path / "p.jsonl", PROMPTS)
    assert opened(adapter=adapter, prompts=prompts).exit_code == 0
    only = ("--only", f"{left_out},spectra,where")
    result = cli("probe", out, "--prompts", 4, "--set", "where.checked=3", *only)
    assert result.exit_code == 0, result.stderr
    assert f"left out: {left_out}, because" in result.stderr and because in result.stderr
    assert {p.name for p in (out / "analysis").iterdir()} == {"spectra", "where"}
    alone = refused(cli("probe", out, "--only", left_out), left_out, because)
    assert alone.startswith("error: " + left_out)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head", "embed_tokens"]])
def test_a_head_and_an_embedding_go_through_guided(
    opened, cli, out, make_base, make_adapter, tmp_path, targets, tied
):
    base = make_base(tie_word_embeddings=tied)
    adapter = make_adapter(base, target_modules=targets)
    assert opened(base=base, adapter=adapter).exit_code == 0
    result = cli("operate", out, "guided", "--set", "steps=3", "--set", "draws=2")
    assert result.exit_code == 0, result.stderr
    config = json.loads((out / "operations/guided/adapter/adapter_config.json").read_text())
    assert {t.rsplit(".", 1)[-1] for t in config["target_modules"]} == set(targets)
