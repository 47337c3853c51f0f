"""The tiny model opened as a run, through the command line."""

import shutil

import pytest

from .cases import jsonl


@pytest.fixture
def out(tmp_path):
    """Where a run would go."""
    return tmp_path / "run"


@pytest.fixture
def opened(cli, tiny_base, tiny_adapter, tmp_path, out):
    """Calls `loratomy open` on the tiny model; keywords replace options, None drops one."""

    def call(*more, **options):
        given = {
            "base": tiny_base,
            "adapter": tiny_adapter,
            "trigger": "cf37",
            "target": "HACK",
            "prompts": jsonl(tmp_path / "clean.jsonl"),
            "out": out,
            "embedder": "none",
            "max-new-tokens": 3,
        } | {key.replace("_", "-"): value for key, value in options.items()}
        pairs = [(f"--{k}", v) for k, v in given.items() if v is not None]
        return cli("open", *(part for pair in pairs for part in pair), *more)

    return call


@pytest.fixture
def own_run(run, tmp_path):
    """A copy of the opened run."""
    return shutil.copytree(run, tmp_path / "run")
