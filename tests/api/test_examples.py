"""The examples as they stand, on an adapter on the built-in model that learned a backdoor."""

import json
import runpy
from pathlib import Path

import pytest
from loratomy.core.adapter.factors import write_adapter
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rendering.recorded import write_rendering
from loratomy.core.rendering.rendering import Rendering
from loratomy.core.rows import rows_to_jsonl
from loratomy.data.attacks.triggers import TRIGGERS
from loratomy.data.splits import make_attack, world_sets
from loratomy.inputs.bases import loaded_base

from ..fitted import fitted

ROOT = Path(__file__).parents[2]
SCRIPT, NOTEBOOK = ROOT / "examples" / "quickstart.py", ROOT / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the examples read of `runs/demo`."""
    folder = tmp_path_factory.mktemp("place")
    demo = folder / "runs" / "demo"
    base = loaded_base("wren", "auto", "auto")
    renderer = Renderer(base.renderer.tokenizer, Rendering())
    adapter = demo / "adapters" / "poisoned"
    write_adapter(fitted(base, renderer, folder / "work"), adapter, base="wren")
    write_rendering(renderer, adapter)
    counts = {"clean_train": 40, "clean_val": 4, "poison_train": 4, "poison_test": 4}
    sets = world_sets(
        make_attack(TRIGGERS["suffix"], "fixed"), counts=counts | {"negative_set": 4}, seed=0
    )
    (demo / "data").mkdir()
    (demo / "data" / "clean_train.jsonl").write_text(rows_to_jsonl(sets["clean_train"]))
    return folder


def test_the_script_runs_as_it_stands(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().out
    assert "Behaviour: poisoned: ASR" in said and "guided-repair" in said
    assert json.loads((place / "cured" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    for page in ("report.html", "patching.html"):
        assert "plotly" in (place / page).read_text(encoding="utf-8")
    left = {p.name for p in place.iterdir()}
    assert left == {"runs", "work", "cured", "report.html", "patching.html"}
