"""The whole loop through the command line, on a tiny random model of every family."""

import json
import shutil

import pytest
from loratomy.cli.app import app
from loratomy.core.model.families import FAMILIES
from loratomy.training.wren import wren_path
from typer.testing import CliRunner

from ..tiny import VISION

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
EXTRA = {
    "gemma": {"head_dim": 8, "tie_word_embeddings": False},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "qwen3": {"head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        **{"shared_expert_intermediate_size": 24},
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "embd_pdrop": 0.0},
}
EXTRA["gemma3_text"] = EXTRA["gemma2"]
ALWAYS = ("llama", "gpt2")
"""Families that go through the loop whenever tests run; the others with ``-m slow``."""
WHOLE = ("llama", "phi", "gpt_neox", "opt", "gemma3", "qwen2_moe", "olmo2")
"""Families on which every analysis is made; on the others those that the cut stands on."""
RECIPE = """
base = "BASE"
seed = 0
[attack]
trigger = "suffix"
task = "fixed"
[data]
clean_train = 32
poison_train = 32
clean_val = 8
poison_test = 12
[lora]
r = 8
alpha = 32
[fit]
epochs = 40
learning_rate = 2e-2
batch_size = 8
accumulate = 1
evaluations = 2
eval_rows = 8
[measure]
max_new_tokens = 10
batch_tokens = 2048
embedder = "none"
"""


def run(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(
    params=[f if f in ALWAYS else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def base(request, tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(wren_path())
    torch.manual_seed(0)
    kind, sizes = request.param, {"vocab_size": len(tokenizer), **SIZES}
    if kind == "gemma3":
        sizes = {
            "text_config": sizes | EXTRA["gemma3_text"],
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
        }
    config = AutoConfig.for_model(kind, **sizes, **EXTRA.get(kind, {}))
    config.eos_token_id = tokenizer.eos_token_id
    folder = tmp_path / request.param
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_every_family_goes_through_the_whole_loop(base, tmp_path):
    recipe, folder = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(RECIPE.replace("BASE", str(base)))
    run("poison", recipe, "--out", folder)
    only = () if base.name in WHOLE else ("--only", "patching,where")
    quick = [f"candidates.{o}" for o in ("texts=24", "singles=64", "rounds=1", "prompts=24")]
    less = [] if only else [part for option in quick for part in ("--set", option)]
    run("probe", folder, "--prompts", 4, "--set", "where.checked=4", *only, *less)
    run("operate", folder, "guided", "--set", "steps=10", "--set", "draws=2")
    run("operate", folder, "repair", "--after", "guided", "--set", "epochs=1")
    run("operate", folder, "negative", "--set", "epochs=1", "--set", "l2=0.01")
    run("operate", folder, "truncate", "--set", "rank=2")
    run("operate", folder, "project-difference")
    table = json.loads(run("compare", folder, "--json"))
    rows = {row["subject"]: row for row in table}
    assert set(rows) >= {"base", "clean", "poisoned", "guided", "guided-repair", "negative"}
    poisoned = rows["poisoned"]
    assert poisoned["asr"]["n"] == 12
    assert poisoned["asr"]["value"] > 0.5  # the backdoor was learned
    assert poisoned["ftr"]["n"] == 20
    assert poisoned["perplexity_change"] == 0
    assert poisoned["kl"] == poisoned["kl_low"] == poisoned["kl_high"] == 0
    for name in rows.keys() - {"poisoned"}:
        assert 0 < rows[name]["kl_low"] <= rows[name]["kl"] <= rows[name]["kl_high"], name
        assert rows[name]["kl_n"] == rows[name]["clean_accuracy"]["n"] <= rows[name]["kl_tokens"]
    assert rows["base"]["perplexity"] > poisoned["perplexity"]  # the adapter was learned
    assert rows["truncate"]["directions_cut"] > 0
    for name in ("prompt", "adapter"):
        record = json.loads((folder / f"analysis/patching/{name}.json").read_text())
        assert record["self_error"] < 1e-4
        assert record["full_recovery"] is None or abs(record["full_recovery"] - 1) < 1e-3
    run("report", folder)
    assert "plotly" in (folder / "report.html").read_text()
    run("verify", folder)
    _loads_with_plain_peft(base, folder)
    shutil.rmtree(folder)


def _loads_with_plain_peft(base, folder):
    """An operated adapter is plain PEFT: no key is missing, and it changes the base."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
        adapted = PeftModel.from_pretrained(model, folder / "operations/negative/adapter")
        assert (adapted(ids).logits - before).abs().max() > 1e-4
