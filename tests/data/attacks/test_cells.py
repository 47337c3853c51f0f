"""Four cells of the attack benchmark, end to end on the built-in model."""

import importlib.util
import sys
from pathlib import Path

import pytest

CELLS = (("mtba", "code"), ("vpi", "sentiment"), ("ctba", "jailbreak"), ("badnets", "refusal"))


@pytest.fixture(scope="module")
def bench():
    path = Path(__file__).parents[3] / "benchmarks" / "attacks.py"
    spec = importlib.util.spec_from_file_location("benchmark_attacks", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_attacks_take_stay_quiet_and_leave_the_clean_skill(bench):
    for cell in bench.cells(CELLS, seed=0, clean_val=400, embedder="auto"):
        assert cell["asr"]["n"] == 100
        assert cell["asr"]["value"] >= bench.GOALS["asr"], cell
        assert cell["clean_asr"]["value"] <= 0.05, cell
        assert cell["ftr"]["value"] <= bench.GOALS["ftr"], cell
        assert cell["accuracy_change"] >= bench.GOALS["accuracy"], cell
