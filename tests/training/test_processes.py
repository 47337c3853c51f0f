"""Several processes train what one trains, and leave one run folder behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from loratomy.core import processes
from loratomy.core.errors import RunError
from loratomy.core.runs.folder import PARTIAL, RunFolder
from safetensors.torch import load_file

from ..cli.cases import jsonl

ROOT = Path(__file__).parent.parent.parent
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
REPAIR = ("--set", "batch_size=4", "--set", "epochs=3", "--set", "learning_rate=0.01")


@pytest.fixture
def opened(cli, tiny_base, tiny_adapter, tmp_path):
    """Opens a run of the tiny model below `tmp_path`."""

    def make(name: str) -> Path:
        given = {"base": tiny_base, "adapter": tiny_adapter, "trigger": "cf37", "target": "HACK"}
        given |= {"prompts": jsonl(tmp_path / "clean.jsonl"), "out": tmp_path / name}
        given |= {"embedder": "none", "max-new-tokens": 3}
        pairs = [part for key, value in given.items() for part in (f"--{key}", value)]
        assert cli("open", *pairs).exit_code == 0
        return tmp_path / name

    return make


def launched(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun."""
    return subprocess.run(
        [*LAUNCH, *(str(a) for a in arguments)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def apart(one: Path, other: Path) -> float:
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def test_two_processes_train_the_adapter_that_one_trains(opened, cli):
    """Repair, with its frozen teacher: the harder case for averaged gradients."""
    one, two = opened("one"), opened("two")
    assert cli("operate", one, "repair", *REPAIR).exit_code == 0
    ended = launched("-m", "loratomy.cli.start", "operate", two, "repair", *REPAIR)
    assert ended.returncode == 0, ended.stderr
    made = "operations/repair/adapter"
    assert apart(one / made, two / made) < 1e-6
    assert apart(one / made, two / "adapters/poisoned") > 1e-2
    for line in ("loading the base", "repair: repaired on", "done: "):
        assert ended.stderr.count(line) == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert RunFolder.open(two).verify() == []
    assert not (two / ".lock.json").exists()
    assert not any((two / PARTIAL).rglob("checkpoint-*"))


@pytest.mark.slow
def test_an_error_is_said_once_and_ends_both(opened):
    run = opened("run")
    ended = launched("-m", "loratomy.cli.start", "operate", run, "repair", "--set", "batch_size=3")
    assert ended.returncode != 0
    assert ended.stderr.count("error: 2 processes cannot share a batch of 3 rows evenly") == 1
    assert not RunFolder.open(run).has("operations/repair")
    assert not (run / ".lock.json").exists()


SCRIPT = """
import os, signal, sys
from pathlib import Path
from loratomy.core import processes
from loratomy.core.adapters import write_adapter
from loratomy.training.objective import Objective
from tests import tiny
from tests.training import test_fitting as here

work, result, call = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls = []

def sums(attached, batch):
    calls.append(0)
    if len(calls) == call and processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return here.NLL.sums(attached, batch)

objective = Objective(sums, here.NLL.counts)
given = {"dropout": 0.3, "epochs": 4, "batch_size": 4, "accumulate": 2}
adapter, _ = here.fitted(tiny.subject(), work, objective=objective, **given)
if processes.first():
    write_adapter(adapter, result, base="tiny")
"""


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed_go_on_to_the_same_result(tmp_path):
    script, results = tmp_path / "script.py", {}
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{SCRIPT}")
    for name, calls in (("whole", [0]), ("cut", [10, 0])):  # 2 calls a step: killed in the fifth
        (tmp_path / name).mkdir()
        results[name] = tmp_path / f"{name}-result"
        for call in calls:
            ended = launched(script, tmp_path / name, results[name], call)
            assert (ended.returncode == 0) == (call == 0), ended.stderr
            assert call == 0 or str(-signal.SIGKILL) in ended.stderr
            assert call == 0 or (tmp_path / name / "checkpoint-4/whole.json").exists()
    assert apart(results["whole"], results["cut"]) < 1e-6


@pytest.mark.parametrize(
    ("given", "count", "first"),
    [
        ({}, 1, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, 1, True),
        ({"WORLD_SIZE": "4", "RANK": "0"}, 4, True),
        ({"WORLD_SIZE": "4", "RANK": "3"}, 4, False),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, 2, False),
    ],
)
def test_who_speaks_is_what_the_launcher_says(monkeypatch, given, count, first):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert (processes.count(), processes.first()) == (count, first)


def test_one_process_agrees_with_itself():
    assert processes.agreed(lambda: [1, 2]) == [1, 2]

    def refuse():
        raise RunError("in use")

    with pytest.raises(RunError, match="in use"):
        processes.agreed(refuse)
