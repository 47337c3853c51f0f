"""Cells in processes of their own: never two of one run, and none left when the bench ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loratomy.bench.cells import Cell
from loratomy.bench.jobs import program, run_cells_apart
from loratomy.core.records.bench_table import read_bench_table

from .cases import snapshot


def cell(folder, seed=0):
    return Cell(Path(folder), Path(folder).name, None, seed, own=seed == 0)


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def until(ready, *, seconds=60.0):
    """Wait for something; what it gives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := ready():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


SPAN = """
import sys, time
began = time.monotonic(); time.sleep(0.3)
print(sys.argv[1], began, time.monotonic(), flush=True)
"""


def test_two_at_a_time_and_never_two_of_one_run(tmp_path):
    cells = [cell("a"), cell("a", 1), cell("b"), cell("c")]
    ended = []
    run_cells_apart(
        cells,
        jobs=2,
        out=tmp_path,
        command=lambda c: python(SPAN, c.key),
        ended=lambda c, failure: ended.append((c.key, failure)),
    )
    assert sorted(ended) == [("a-s0", ""), ("a-s1", ""), ("b-s0", ""), ("c-s0", "")]
    spans = {}
    for key, _ in ended:
        name, began, left = (tmp_path / f"logs/{key}.log").read_text().split()
        spans[name] = float(began), float(left)
    assert spans["a-s0"][1] < spans["a-s1"][0]
    for began, left in spans.values():
        others = sum(b < left and began < e for b, e in spans.values())
        assert others <= 3  # with one that ends and one that begins in its time
        at_once = sum(b <= began < e for b, e in spans.values())
        assert at_once <= 2


def test_a_failure_is_its_last_line_and_the_others_go_on(tmp_path):
    codes = {"a-s0": "import sys; print('error: no such thing\\n'); sys.exit(2)", "b-s0": "pass"}
    codes["c-s0"] = "import sys; sys.exit(3)"
    ended = {}
    run_cells_apart(
        [cell("a"), cell("b"), cell("c")],
        jobs=1,
        out=tmp_path,
        command=lambda c: python(codes[c.key]),
        ended=lambda c, failure: ended.update({c.key: failure}),
    )
    log = tmp_path / "logs/a-s0.log"
    assert ended["a-s0"] == f"its process ended with 2: error: no such thing (see {log})"
    assert ended["b-s0"] == "" and "ended with 3: no output" in ended["c-s0"]


def test_an_exception_ends_all_processes(tmp_path):
    pids = tmp_path / "pids"
    code = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n')\n"

    def command(one):
        wait = "" if one.key == "a-s0" else "time.sleep(60)"
        return python(code + wait, pids)

    def ended(*_):
        until(lambda: len(pids.read_text().split()) == 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells_apart(
            [cell("a"), cell("b"), cell("c")], jobs=2, out=tmp_path, command=command, ended=ended
        )
    found = [int(pid) for pid in pids.read_text().split()]
    assert len(found) == 2 and not any(alive(pid) for pid in found)  # c was never begun


def test_a_process_whose_bench_was_killed_ends_itself():
    code = (
        "from loratomy.core.stopping import end_with; import time\n"
        "end_with(); print('on', flush=True); time.sleep(60)"
    )
    pipe = subprocess.PIPE
    child = subprocess.Popen(python(code), stdin=pipe, stdout=pipe)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    child.stdin.close()  # as the system does when the parent is gone
    assert child.wait(20) == -signal.SIGTERM


def test_the_program_is_found_whatever_lies_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "types.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    done = subprocess.run([*program(), "bench", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "attack x task x method x seed" in done.stdout


def test_sigterm_leaves_no_process_and_the_bench_goes_on_after_it(run, cli, tmp_path):
    """The installed command with two jobs, ended while both cells are being made."""
    names = ("a", "b c")  # a name with a space in it
    runs = [shutil.copytree(run, tmp_path / name) for name in names]
    asked = ["bench", *map(str, runs), "--methods", "truncate,scale", "--jobs", "2"]
    asked += ["--out", str(tmp_path / "out")]
    script = Path(sys.executable).with_name("loratomy")
    bench = subprocess.Popen([script, *asked], stderr=subprocess.PIPE, text=True)
    locks = [folder / ".lock.json" for folder in runs]

    def working():
        assert bench.poll() is None, bench.communicate()
        made = [(folder / "operations").exists() for folder in runs]
        return all(made) and all(lock.exists() for lock in locks)

    until(working, seconds=120)
    pids = [json.loads(lock.read_text())["pid"] for lock in locks]
    assert len({*pids, bench.pid}) == 3
    bench.send_signal(signal.SIGTERM)
    _, said = bench.communicate(timeout=60)
    assert bench.returncode == 143 and "run the same command again" in said
    assert not any(alive(pid) for pid in pids)
    before = snapshot(tmp_path)
    time.sleep(0.5)
    assert snapshot(tmp_path) == before  # nobody goes on writing
    result = cli(*asked, "--jobs", 1)
    assert result.exit_code == 0, result.stderr
    rows = read_bench_table(tmp_path / "out/bench.parquet")
    entries = {(r.cell, r.entry) for r in rows}
    assert len(entries) == 2 * (2 + 3 + 3) and {c for c, _ in entries} == set(names)
    log = (tmp_path / "out/logs/b%20c-s0.log").read_text()
    assert "error: terminated" in log
