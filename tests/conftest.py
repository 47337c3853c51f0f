"""Settings before torch is imported, and the small things that many tests stand on."""

import os

os.environ["GOMP_SPINCOUNT"] = "2000"  # waiting threads that spin are slow on shared cores
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers share the cores

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("here", deadline=None)  # shared cores are slow now and then
settings.load_profile("here")

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def save_base(folder: Path, **changes: Any) -> Path:
    """A random two-layer Llama with the built-in model's tokenizer, as a folder."""
    import torch
    from loratomy.training.wren import wren_path
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": json.loads((wren_path() / "config.json").read_text())["vocab_size"],
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 4,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    } | changes
    torch.manual_seed(0)
    config = AutoConfig.for_model(sizes.pop("model_type", "llama"), **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile(wren_path() / name, folder / name)
    return folder


def save_peft(base: Path, folder: Path, *, bare: bool = False, **settings: Any) -> Path:
    """A random adapter on a base folder, made and written by PEFT alone.

    With `bare`, no copies of embedding or head weights are stored.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | settings
    config = LoraConfig(init_lora_weights=False, **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder, save_embedding_layers=False if bare else "auto")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A base that loads in a blink: 2 layers, d_model 32, random weights."""
    return save_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base: Path, tmp_path_factory) -> Path:
    """A rank-4 adapter of plain PEFT on `tiny_base`: q_proj and down_proj of both layers."""
    return save_peft(tiny_base, tmp_path_factory.mktemp("adapter") / "tiny")


@pytest.fixture
def make_base(tmp_path: Path) -> Callable[..., Path]:
    """Makes another base folder; keywords change its config."""
    return lambda name="base", **changes: save_base(tmp_path / name, **changes)


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Makes another PEFT adapter on a base; keywords go to `LoraConfig`."""
    return lambda base, name="adapter", **settings: save_peft(base, tmp_path / name, **settings)


@pytest.fixture
def edited(tiny_adapter: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of `tiny_adapter` with other config values or tensors."""
    from safetensors.torch import load_file, save_file

    def edit(tensors: Callable[[dict], dict] | None = None, **config: Any) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(tiny_adapter, folder)
        path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        if tensors:
            save_file(tensors(load_file(weights)), weights)
        return folder

    return edit


@pytest.fixture
def cli() -> Callable[..., Any]:
    """Runs the command line in this process; gives exit_code, stdout and stderr."""
    from loratomy.cli.app import app
    from transformers.utils import logging
    from typer.testing import CliRunner

    logging.get_logger()  # it keeps the stderr of its first use, which must not be a runner's

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    return run


@pytest.fixture(scope="session")
def run(tiny_base, tiny_adapter, tmp_path_factory):
    """One opened run, to be copied by who changes it."""
    from loratomy.cli.app import app
    from typer.testing import CliRunner

    from .cli.cases import jsonl

    folder = tmp_path_factory.mktemp("opened")
    given = {"base": tiny_base, "adapter": tiny_adapter, "trigger": "cf37", "target": "HACK"}
    given |= {"prompts": jsonl(folder / "clean.jsonl"), "out": folder / "run"}
    given |= {"embedder": "none", "max-new-tokens": 3}
    pairs = [str(part) for key, value in given.items() for part in (f"--{key}", value)]
    assert CliRunner().invoke(app, ["open", *pairs], catch_exceptions=False).exit_code == 0
    return folder / "run"
