"""Run folders: made whole, continued, never mixed, never shared, never silently altered."""

import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from loratomy.core.errors import RunError
from loratomy.core.files.outputs import run_path
from loratomy.core.records.io import SCHEMA, dumps
from loratomy.core.rows import Row
from loratomy.core.runs import folder as runs
from loratomy.core.runs.folder import MANIFEST, RunFolder

REQUEST = {"kind": "test", "study": {"seed": 0, "trigger": "x"}}


def write(text: str):
    return lambda work: (work / "a").write_text(text)


def boom(work: Path) -> None:
    (work / "a").write_text("half")
    raise RuntimeError("boom")


def made(root: Path) -> RunFolder:
    """A run with one finished stage."""
    run = RunFolder.create(root, request=REQUEST)
    with run.locked():
        assert run.stage("data", {"n": 1}, write("first"))
    return run


# --- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("../../x", "/etc/x", "a/b", "a\\b", "..", ".", ".hidden", "-x", "x" * 81, "x" * 300),
        *("a b", "a\0", "a\n", "é", "CON:", "~", "$HOME"),
    ],
)
def test_names_that_are_no_names_are_refused(name):
    with pytest.raises(RunError, match=re.escape(repr(name[:40]))):
        run_path(name, None)


def test_names_go_below_runs_and_a_folder_is_taken_as_given():
    assert run_path("wren-suffix_2.b", None) == Path("runs/wren-suffix_2.b")
    assert run_path("../x", Path("/tmp/y")) == Path("/tmp/y")
    assert run_path("x", Path("a/b/../c")) == Path("a/c").resolve()
    assert run_path("x", Path("../c")) == Path("../c").resolve()
    with pytest.raises(RunError, match="over 200 bytes"):
        run_path("x", Path("é" * 101))


# --- what stands at the folder -------------------------------------------------------------


def test_nothing_is_written_before_the_lock(tmp_path):
    run = RunFolder.create(tmp_path / "deep" / "run", request=REQUEST)
    assert not (tmp_path / "deep").exists()
    with run.locked():
        assert (tmp_path / "deep" / "run" / MANIFEST).exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_somebody_else_s_folder_or_file_is_never_touched(tmp_path, fresh):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="is not a run folder"):
        RunFolder.create(tmp_path / "mine", request=REQUEST, fresh=fresh)
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(tmp_path / "mine" / "thesis.tex", request=REQUEST, fresh=fresh)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "is not a run folder"),
        ("", "cannot read"),
        ("{", "cannot read"),
        ("\udcff", "cannot read"),
        ("[1]", f"schema None, this one reads {SCHEMA}"),
        (json.dumps({"schema": SCHEMA + 1}), f"schema {SCHEMA + 1}, this one reads {SCHEMA}"),
        (json.dumps({"schema": SCHEMA, "request": {}}), "run.json: name: Field required; put back"),
    ],
)
def test_manifests_that_are_none(tmp_path, text, said):
    if text is not None:
        (tmp_path / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(RunError, match=said):
        RunFolder.open(tmp_path)


def test_fresh_replaces_a_run_of_another_version(tmp_path):
    made(tmp_path)
    other = json.loads((tmp_path / MANIFEST).read_text()) | {"schema": SCHEMA + 1}
    (tmp_path / MANIFEST).write_text(json.dumps(other))
    with pytest.raises(RunError, match="--fresh"):
        RunFolder.create(tmp_path, request=REQUEST)
    run = RunFolder.create(tmp_path, request=REQUEST, fresh=True)
    with run.locked(fresh=True):
        assert not run.path("data").exists() and not run.has("data")


def test_fresh_never_touches_a_folder_of_somebody_else(tmp_path):
    (tmp_path / MANIFEST).write_text('{"project": "somebody else\'s"}')
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder.create(tmp_path, request=REQUEST, fresh=True)
    assert (tmp_path / "thesis.txt").exists()


def test_fresh_removes_what_a_run_holds_and_nothing_else(tmp_path):
    made(tmp_path)
    (tmp_path / "notes.md").write_text("mine")
    with RunFolder.create(tmp_path, request=REQUEST, fresh=True).locked(fresh=True) as run:
        assert not run.path("data").exists()
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_what_was_made_from_an_earlier_stage_is_stale(tmp_path):
    run = RunFolder.create(tmp_path, request=REQUEST)
    with run.locked():
        run.stage("a", {}, lambda work: (work / "x").write_text("1"))
        run.stage("b", {"from": run.digest("a")}, lambda work: (work / "y").write_text("1"))
        run.stage("c", {"from": run.digest("b")}, lambda work: (work / "z").write_text("1"))
        assert [run.stale(s) for s in "abc"] == ["", "", ""]
        run.stage("a", {}, lambda work: (work / "x").write_text("2"), fresh=True)
        assert run.stale("b") == run.stale("c") == "b was made from an earlier a"


# --- stages --------------------------------------------------------------------------------


def test_a_stage_is_made_once_and_then_stands(tmp_path):
    made(tmp_path)
    run = RunFolder.create(tmp_path, request=REQUEST)
    with run.locked():
        assert not run.stage("data", {"n": 1}, boom)
        assert run.stage("data", {"n": 1}, write("second"), fresh=True)
    assert (tmp_path / "data" / "a").read_text() == "second" and run.verify() == []


def test_other_inputs_are_named_and_not_mixed(tmp_path):
    run = made(tmp_path)
    with run.locked(), pytest.raises(RunError, match=r"n: 1 -> 2.*--fresh"):
        run.stage("data", {"n": 2}, write("second"))
    assert (tmp_path / "data" / "a").read_text() == "first"


def test_other_settings_are_named_and_not_mixed(tmp_path):
    made(tmp_path)
    other = {"kind": "test", "study": {"seed": 0, "trigger": "y"}}
    with pytest.raises(RunError, match=r"study\.trigger: x -> y.*--fresh"):
        RunFolder.create(tmp_path, request=other)
    run = RunFolder.create(tmp_path, request=other, fresh=True)
    with run.locked(fresh=True):
        assert not (tmp_path / "data").exists()
    assert RunFolder.open(tmp_path).request == other


def test_checkpoints_of_other_code_are_not_continued(tmp_path, monkeypatch):
    run = made(tmp_path)
    folder = run.partial("fit", {"n": 1})
    (folder / "checkpoint").write_text("x")
    assert run.partial("fit", {"n": 1}) == folder and (folder / "checkpoint").exists()
    with pytest.raises(RunError, match=r"n: 1 -> 2.*--fresh"):
        run.partial("fit", {"n": 2})
    recorded = (folder / "inputs.json").read_text()
    (folder / "inputs.json").write_text("null")
    with pytest.raises(RunError, match=r"inputs\.json does not record what was begun; remove "):
        run.partial("fit", {"n": 1})
    (folder / "inputs.json").write_text(recorded)
    monkeypatch.setattr(runs, "code_digest", lambda: "other")
    with pytest.raises(RunError, match=r"another code.*--fresh"):
        run.partial("fit", {"n": 1})
    assert not (run.partial("fit", {"n": 1}, fresh=True) / "checkpoint").exists()


def test_a_stage_that_raises_leaves_no_trace_and_is_made_next_time(tmp_path):
    run = RunFolder.create(tmp_path, request=REQUEST)
    with pytest.raises(RuntimeError, match="boom"), run.locked():
        run.stage("data", {}, boom)
    again = RunFolder.create(tmp_path, request=REQUEST)
    assert not again.has("data") and not again.path("data").exists()
    with again.locked():
        assert again.stage("data", {}, write("whole"))
    assert (tmp_path / "data" / "a").read_text() == "whole"


KILLED = """
import os, signal, sys
from pathlib import Path
from loratomy.core.runs.folder import RunFolder
run = RunFolder.create(Path(sys.argv[1]), request={"kind": "test"})
def make(work):
    (work / "a").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
with run.locked():
    run.stage("earlier", {}, lambda work: (work / "a").write_text("earlier"))
    run.stage("data", {}, make)
"""


def test_killed_in_the_middle_of_a_stage(tmp_path):
    root = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", KILLED, root], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    run = RunFolder.create(root, request={"kind": "test"})
    assert run.has("earlier") and not run.has("data") and not run.path("data").exists()
    with run.locked():  # the lock died with its holder
        assert not run.stage("earlier", {}, boom)
        assert run.stage("data", {}, write("whole"))
    files = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert files - {".lock"} == {MANIFEST, "earlier/a", "data/a"}


@pytest.mark.parametrize("left", [".lock.json", ".lock", ".tmp-abc", ".partial"])
def test_killed_before_the_first_manifest(tmp_path, left):
    (tmp_path / left).write_text("{}")
    run = RunFolder.create(tmp_path, request=REQUEST)
    with run.locked():
        assert RunFolder.open(tmp_path).request == REQUEST


def test_killed_while_starting_over(tmp_path, monkeypatch):
    """What is left is a run in which nothing stands, not a folder that nobody may touch."""
    made(tmp_path)
    run = RunFolder.create(tmp_path, request=REQUEST, fresh=True)
    with monkeypatch.context() as patch:
        patch.setattr(runs.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), run.locked(fresh=True):
            pass
    again = RunFolder.create(tmp_path, request=REQUEST)
    with again.locked():
        assert again.stage("data", {"n": 1}, write("second"))
    assert (tmp_path / "data" / "a").read_text() == "second"


# --- checksums -----------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["altered", "missing"])
def test_a_changed_file_is_reported_and_never_used(tmp_path, change):
    run = made(tmp_path)
    path = tmp_path / "data" / "a"
    path.write_text("other") if change == "altered" else path.unlink()
    said = "differs from its recorded checksum" if change == "altered" else "is missing"
    assert run.verify() == [f"{path} {said}"]
    with run.locked(), pytest.raises(RunError, match=f"{said}; use --fresh .* to make data again"):
        run.stage("data", {"n": 1}, write("second"))
    with run.locked():
        assert run.stage("data", {"n": 1}, write("second"), fresh=True)
    assert run.verify() == []


def test_a_stage_of_one_file_is_checked_too(tmp_path):
    run = made(tmp_path)
    with run.locked():
        assert run.make_rows("data/n.jsonl", {}, lambda: [Row(prompt="one")])
        assert not run.make_rows("data/n.jsonl", {}, lambda: [Row(prompt="two")])
    (tmp_path / "data" / "n.jsonl").write_text("other")
    assert len(run.verify()) == 1
    with run.locked(), pytest.raises(RunError, match="differs"):
        run.make_rows("data/n.jsonl", {}, lambda: [Row(prompt="two")])


def test_a_digest_changes_with_the_files(tmp_path):
    run = made(tmp_path)
    before = run.digest("data")
    with run.locked():
        run.stage("data", {"n": 1}, write("first"), fresh=True)
        assert run.digest("data") == before
        run.stage("data", {"n": 1}, write("second"), fresh=True)
        assert run.digest("data") != before


# --- two processes -------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from loratomy.core.runs.folder import RunFolder
with RunFolder.open(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    made(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        before = (tmp_path / MANIFEST).read_text()
        began = time.monotonic()
        said = rf"in use by process {holder.pid} on {re.escape(platform.node())} "
        with pytest.raises(RunError, match=said), RunFolder.open(tmp_path).locked(fresh=True):
            pass
        assert time.monotonic() - began < 2
        assert (tmp_path / MANIFEST).read_text() == before and (tmp_path / "data" / "a").exists()
    finally:
        holder.kill()
        holder.wait()
    with RunFolder.open(tmp_path).locked():
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock.json").exists()


def test_what_another_process_finished_meanwhile_is_kept(tmp_path):
    """Read before, locked after: the stages recorded in between are not forgotten."""
    early = RunFolder.create(tmp_path, request=REQUEST)
    made(tmp_path)
    with early.locked():
        assert not early.stage("data", {"n": 1}, boom)
    assert RunFolder.open(tmp_path).has("data")


def test_what_another_process_made_otherwise_meanwhile_is_not_mixed(tmp_path):
    early = RunFolder.create(tmp_path, request={"kind": "other"})
    made(tmp_path)
    with pytest.raises(RunError, match=r"kind: test -> other"), early.locked():
        pass
    assert RunFolder.open(tmp_path).request == REQUEST


# --- JSON ----------------------------------------------------------------------------------


def refuse(constant: str):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf")]
)
def test_what_is_no_number_becomes_null_in_valid_json(bad):
    text = dumps({"a": bad, "b": [1.5, bad], "c": np.array([bad, 2.0]), "d": {"e": (bad,)}})
    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": None, "b": [1.5, None], "c": [None, 2.0], "d": {"e": [None]}}


def test_a_nan_among_the_inputs_does_not_unmake_a_stage(tmp_path):
    run = RunFolder.create(tmp_path, request={"x": math.nan})
    with run.locked():
        assert run.stage("data", {"x": math.nan}, write("first"))
    again = RunFolder.create(tmp_path, request={"x": math.nan})
    with again.locked():
        assert not again.stage("data", {"x": math.nan}, boom)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")
def test_stages_made_side_by_side_are_all_recorded(tmp_path):
    run = RunFolder.create(tmp_path / "r", request={"kind": "test"})

    def make(name: str) -> None:
        with run.locked():  # held already
            for i in range(8):
                run.stage(f"data/{name}{i}", {"i": i}, write(f"{name}{i}"))

    with run.locked():
        run.side_by_side([partial(make, "a"), partial(make, "b")], jobs=2)
        names = {f"data/{n}{i}" for n in "ab" for i in range(8)}
        assert set(run.stages) == names and not run.manifest.get("making")
        assert not run.stage("data/a0", {"i": 0}, write("again"))
    again = RunFolder.open(run.root)
    assert set(again.stages) == names and again.verify() == []
    with again.locked():
        pass
