"""`loratomy extract` on models with another vocabulary, head or embedding: the rest comes out."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from .cases import refused
from .test_extract import WEIGHTS, merge, same


@pytest.fixture(scope="module")
def merged(tiny_base, tiny_adapter, tmp_path_factory):
    return merge(tiny_base, tiny_adapter, tmp_path_factory.mktemp("merged") / "model")


def model_with(source, folder, change, **config):
    """A copy of a model with other tensors and config."""
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    tensors = change(load_file(folder / WEIGHTS))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


def wider(tensors):
    """A vocabulary of 8 rows more, as `resize_token_embeddings` leaves it."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old = tensors[name]
        tensors[name] = torch.cat([old, torch.full((8, old.shape[1]), 0.01)])
    return tensors


def trained(tensors):
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"] + 0.1
    return tensors


def both(*names):
    return [part for name in names for part in ("--ignore-module", name)]


@pytest.mark.parametrize(
    ("change", "config", "said", "ignored"),
    [
        (wider, {"vocab_size": 1288}, "--ignore-module", ("embed_tokens", "lm_head")),
        (trained, {}, "--ignore-module model.embed_tokens", ("embed_tokens",)),
    ],
)
def test_the_rest_is_extracted(
    cli, tiny_base, tiny_adapter, merged, tmp_path, change, config, said, ignored
):
    other = model_with(merged, tmp_path / "other", change, **config)
    command = ("extract", "--base", tiny_base, "--merged", other, "--out", tmp_path / "out")
    refused(cli(*command), "embed_tokens", said)
    result = cli(*command, *both(*ignored))
    assert result.exit_code == 0, result.stderr
    assert "changed and left out as requested" in result.stderr
    for name in ignored:
        assert name in result.stderr
    assert same(tiny_base, tmp_path / "out", tiny_adapter)
    record = json.loads((tmp_path / "out/extraction.json").read_text())
    assert len(record["ignored"]) == len(ignored)


def test_a_head_that_was_untied(cli, make_base, make_adapter, tmp_path):
    base = make_base(tie_word_embeddings=True)
    adapter = make_adapter(base)
    tied = merge(base, adapter, tmp_path / "tied")

    def untied(tensors):
        head = tensors["model.embed_tokens.weight"].clone()
        head[5] += 1
        return tensors | {"lm_head.weight": head}

    other = model_with(tied, tmp_path / "untied", untied, tie_word_embeddings=False)
    command = ("extract", "--base", base, "--merged", other, "--out", tmp_path / "out")
    refused(cli(*command), "the base has no lm_head.weight", "--ignore-module lm_head")
    result = cli(*command, *both("lm_head"))
    assert result.exit_code == 0, result.stderr
    assert "left out as requested: lm_head.weight" in result.stderr
    assert same(base, tmp_path / "out", adapter)


def test_a_name_that_no_weight_has_is_an_error(cli, tiny_base, merged, tmp_path):
    command = ("extract", "--base", tiny_base, "--merged", merged, "--out", tmp_path / "out")
    refused(cli(*command, *both("embed_token")), "embed_token:", "did you mean embed_tokens?")
    assert not (tmp_path / "out").exists()


def test_a_model_of_pickles_comes_with_the_way_to_convert_it(
    cli, tiny_base, tiny_adapter, merged, tmp_path
):
    import re
    import shlex
    import subprocess
    import sys

    folder = shutil.copytree(merged, tmp_path / "pickled")
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    command = ("extract", "--base", tiny_base, "--out", tmp_path / "out", "--merged")
    line = refused(cli(*command, folder), "pickle (pytorch_model.bin)", f"{folder}-safetensors")
    opened = ("open", "--base", folder, "--adapter", tiny_adapter, "--out", tmp_path / "run")
    assert "python -c" in refused(cli(*opened), f"the base {folder} holds its weights as a pickle")
    found = re.search(r"python -c .*", line)
    assert found
    subprocess.run([sys.executable, *shlex.split(found[0])[1:]], check=True)
    assert cli(*command, f"{folder}-safetensors").exit_code == 0
    assert same(tiny_base, tmp_path / "out", tiny_adapter)
