"""The examples of docs/extending.md run as they stand, in Python and through the command line."""

import re
import shutil
from pathlib import Path

import loratomy as lt
import numpy as np
import pytest
from loratomy.analysis.catalogue import ANALYSES
from loratomy.evaluation.scorers import SCORERS
from loratomy.inputs import plugins
from loratomy.unlearning import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def plugin(tmp_path):
    """The page's examples as a file; what it registers is gone afterwards."""
    kept = [(registry, dict(registry.items())) for registry in (ANALYSES, METHODS, SCORERS)]
    path = tmp_path / "mine.py"
    path.write_text("\n\n".join(BLOCKS))
    yield path
    for registry, items in kept:
        registry._items = items
    plugins.load_file.cache_clear()


def test_each_example_is_short():
    assert len(BLOCKS) == 3
    assert all(len(block.splitlines()) <= 25 for block in BLOCKS)


def test_in_python(plugin, opened):
    plugins.load_file(plugin)
    study = opened()
    found = study.probe("layer-norms").only
    norms = {}
    for name, factors in study.poisoned.modules.items():
        layer = int(name.split(".")[2])
        norms[layer] = norms.get(layer, 0) + float(factors.dense().square().sum())
    frame = found.to_frame()
    assert list(frame["layer"]) == [0, 1]
    assert np.allclose(frame["norm"], [norms[0] ** 0.5, norms[1] ** 0.5])
    softer = study.operate("soften", factor=0.25)
    name, factors = next(iter(study.poisoned.modules.items()))
    assert np.allclose(softer.adapter.modules[name].dense(), factors.dense() / 4, atol=1e-6)
    with pytest.raises(lt.LoratomyError, match="factor"):
        study.operate("soften", factor=2)
    assert study.evaluate(scorers="shouts and not refusal").rules[0].rule.startswith("shouts")
    assert {"layer-norms"} < set(lt.analyses()["name"]) and {"soften"} < set(lt.methods()["name"])


def test_on_the_command_line(plugin, run, cli, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    assert cli("probe", folder, "--only", "layer-norms").exit_code == 2
    for command in (
        ("probe", folder, "--only", "layer-norms"),
        ("operate", folder, "soften", "--set", "factor=0.25"),
        ("compare", folder, "--scorers", "shouts"),
        ("report", folder),
        ("analyses", "layer-norms"),
        ("methods", "soften"),
        ("scorers",),
    ):
        result = cli(*command, "--plugin", plugin)
        assert result.exit_code == 0, (command, result.output)
    assert (folder / "analysis/layer-norms/layer-norms.json").exists()
    assert lt.load(folder).probe("layer-norms").only.layer.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such file"),
        ("import loratomy as lt\n1 / 0\n", "line 2: ZeroDivisionError"),
        ("def broken(:\n", "line 1: SyntaxError"),
        (
            "import loratomy as lt\n@lt.scorer('exact', about='x')\ndef x(cases): ...\n",
            "registered twice",
        ),
    ],
)
def test_what_is_wrong_with_a_plugin_is_said_in_a_line(plugin, cli, run, text, said):
    if text is None:
        plugin.unlink()
    else:
        plugin.write_text(text)
    result = cli("compare", run, "--plugin", plugin)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split()) and "Traceback" not in result.stderr


def test_packages_register_by_entry_point(monkeypatch, plugin, opened):
    class Point:
        name, value, dist = "mine", "mine_package", None

        def load(self):
            plugins.load_file(plugin)

    study = opened()
    plugins.load_installed.cache_clear()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Point()] if group else [])
    assert study.operate("soften", factor=0.5).name == "soften"
    assert "soften" in set(lt.methods()["name"])  # loaded by the first call that needs it
    plugins.load_installed.cache_clear()


SCORER = """
import loratomy as lt
import numpy as np

@lt.scorer("mine", about="mine", needs_target=False)
def mine(cases):
    return RESULT
"""


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("np.full(len(cases.answers), np.nan)", "the scorer mine gave nan for the answer"),
        ("[1.0]", r"the scorer mine gave scores of shape \(1,\)"),
        ("1 / 0", "the scorer mine: ZeroDivisionError"),
    ],
)
def test_what_a_scorer_returns_is_checked(plugin, opened, result, said):
    plugin.write_text(SCORER.replace("RESULT", result))
    plugins.load_file(plugin)
    with pytest.raises(lt.LoratomyError, match=said):
        opened().evaluate(scorers="mine")


def test_results_of_another_version_of_a_plugin_are_not_taken(plugin, opened, tmp_path):
    def rate(result):
        plugin.write_text(SCORER.replace("RESULT", result))
        plugins.load_file.cache_clear()
        plugins.load_file(plugin)  # registered again, as by a cell of a notebook that is run again
        return lt.load(folder).evaluate(scorers="mine").asr.value

    folder = tmp_path / "kept"
    opened(out=folder)
    assert rate("[0.0] * len(cases.answers)") == 0
    assert rate("['red' not in answer for answer in cases.answers]") > 0
