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


@pytest.mark.slow  # the notebook runs the same lines
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


def test_the_notebook_runs_and_its_outputs_are_kept(place):
    import nbformat
    from nbclient import NotebookClient

    kept = nbformat.read(NOTEBOOK, as_version=4)
    shown = [output for cell in kept.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert any("ASR 99.7 %" in output.get("data", {}).get("text/plain", "") for output in shown)
    here = place / "notebook"
    here.mkdir()
    (here / "runs").symlink_to(place / "runs")
    client = NotebookClient(kept, timeout=300, resources={"metadata": {"path": str(here)}})
    client.execute()
    assert (here / "report.html").exists() and (here / "cured" / "adapter_config.json").exists()


def test_the_notebook_is_what_its_builder_writes():
    spec = runpy.run_path(str(ROOT / "examples" / "build_notebook.py"))
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    made = spec["notebook"]()
    assert ["".join(cell["source"]) for cell in kept["cells"]] == [c.source for c in made.cells]


def test_the_page_of_the_api_is_that_of_this_code():
    spec = runpy.run_path(str(ROOT / "docs" / "build_api.py"))
    remedy = "write it again with python docs/build_api.py"
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == spec["page"](), remedy
