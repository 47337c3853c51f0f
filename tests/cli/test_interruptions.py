"""Signals and hostile text through the real program, from its first moment on."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from .cases import SMALL, refused

PROGRAM = [sys.executable, "-m", "loratomy.cli.start"]


def started(*arguments, **more):
    pipe = subprocess.PIPE
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **more)


def ended(process, number, code):
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said and said.splitlines()[-1].startswith("error: "), said
    return said


@pytest.mark.parametrize("module", ["app", "probe"])
def test_ctrl_c_while_the_program_is_imported_says_interrupted(module):
    code = (
        "import sys, os, signal\n"
        "sys.argv = ['loratomy', 'probe', 'x']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's job may ignore it
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == 'loratomy.cli.{module}':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from loratomy.cli.start import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted; run the same command again\n"


def test_a_signal_in_a_fit_ends_with_its_code_and_the_command_goes_on(tiny_base, tmp_path, cli):
    command = ["poison", "wren/suffix", "--set", f"base={tiny_base}", *SMALL]
    command += ["--set", "fit.epochs=30", "--set", "fit.learning_rate=1e-4"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    signals = {"clean": (signal.SIGUSR1, 75), "poisoned": (signal.SIGTERM, 143)}
    for name, (number, code) in signals.items():
        process, until = started(*command, "--out", cut), time.monotonic() + 120
        while not list(cut.glob(f".partial/adapters/{name}/checkpoint-*/whole.json")):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        assert "run the same command again to continue" in ended(process, number, code)
        assert not (cut / ".lock.json").exists() and not list(cut.glob(".tmp-*"))
        assert list(cut.glob(f".partial/adapters/{name}/checkpoint-*/whole.json"))
    for out in (cut, whole):
        assert cli(*command, "--out", out).exit_code == 0
    for name in ("clean", "poisoned"):
        here, there = (f / "adapters" / name / "adapter_model.safetensors" for f in (cut, whole))
        assert here.read_bytes() == there.read_bytes()


def test_what_is_measured_again_after_a_kill_is_the_same_to_the_byte(own_run, cli, tmp_path):
    """The last digits of embeddings must not depend on what else was asked in the same process."""
    for name in ("truncate", "merge"):
        options = ["truncate", "--set", "rank=1"] if name == "truncate" else ["scale"]
        cli("operate", own_run, *options)
    other = shutil.copytree(own_run, tmp_path / "other")
    assert cli("compare", own_run).exit_code == 0
    from loratomy.verbs import measuring

    judge, calls = measuring._judge, []

    def stop(study, name, *more):
        if len(calls) == 2:
            calls.append(name)
            raise KeyboardInterrupt
        calls.append(name)
        return judge(study, name, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_judge", stop)
        refused(cli("compare", other), "stopped", code=130)
    assert cli("compare", other).exit_code == 0
    for path in (own_run / "analysis" / "measured").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (other / path.relative_to(own_run)).read_bytes(), path


# --- text from outside -------------------------------------------------------------------------

ESC = "\x1b]0;owned\x07\x1b[2J\u202e"


def test_names_of_tensors_do_not_reach_the_terminal_raw(opened, edited):
    from safetensors.torch import load_file, save_file

    path = edited() / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"base_model.model.{ESC}"] = tensors.pop(next(iter(tensors)))
    save_file(tensors, path)
    line = refused(opened(adapter=path.parent), "\\x1b]0;owned\\x07\\x1b[2J\\u202e")
    assert not any(c in line for c in ESC if not c.isprintable())


def test_options_and_names_of_files_neither(cli, tmp_path):
    for arguments in (
        [f"--{ESC}"],
        ["verify", tmp_path / ESC.replace("/", "")],
        ["methods", f"--{ESC}"],
        ["bench", "--methods", ESC],
        ["operate", "run", "guided", "--plan", "x", ESC],
        [ESC],
    ):
        result = cli(*arguments)
        assert result.exit_code == 2
        assert "\x1b]" not in result.stderr + result.stdout and "\u202e" not in result.stderr
        assert "x1b]0;owned" in result.stderr.replace("\n", "").replace(" ", "")


def test_tables_and_json_neither(cli):

    from loratomy.core.console import Terminal, cell, say_json
    from rich.table import Table

    file = io.StringIO()
    table = Table(title=ESC)
    table.add_column("a" + ESC)
    table.add_row(cell("[b]x[/]" + ESC + "y" * 1000))
    table.add_row("raw" + ESC)
    console = Terminal(file=file, width=400, highlight=False)
    console.print(table)
    console.print(ESC, markup=False)
    assert not {"\x1b", "\x07", "\u202e"} & set(file.getvalue())
    assert "\\x1b[2J" in file.getvalue() and "[b]x[/]" in file.getvalue()
    assert "(" in file.getvalue() and "y" * 300 not in file.getvalue()
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        say_json({"a": ESC + "\x9b\x7f é"})
    assert json.loads(told.getvalue()) == {"a": ESC + "\x9b\x7f é"}
    assert not {"\x1b", "\x9b", "\x7f", "\u202e"} & set(told.getvalue())


def test_a_process_of_a_killed_bench_ends_within_two_seconds():
    """Even one that does not let go: here it ignores SIGTERM and waits in C."""
    code = (
        "from loratomy.core.stopping import end_with\n"
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "end_with(); print('on', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe)
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    began = time.monotonic()
    child.stdin.close()
    assert child.wait(20) == -signal.SIGALRM and time.monotonic() - began < 3


def test_a_killed_bench_takes_its_processes_along_and_is_taken_over(own_run, cli, tmp_path):
    for other in ("a", "b"):
        shutil.copytree(own_run, tmp_path / other)
    asked = ["bench", tmp_path / "a", tmp_path / "b", "--methods", "truncate,scale", "--jobs", "2"]
    bench = started(*asked, "--out", tmp_path / "bench", start_new_session=True)
    until = time.monotonic() + 120
    while not (children := _children(bench.pid)):
        assert bench.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    bench.send_signal(signal.SIGKILL)
    bench.communicate()
    time.sleep(2.5)
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}") and not _zombie(pid)]
    again = cli(*asked[:-2], "--out", tmp_path / "bench")  # in this process, where all is imported
    assert again.exit_code == 0, again.stderr
    assert (tmp_path / "bench" / "bench.html").exists()


def _children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def _zombie(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rsplit(")", 1)[1].split()[0] == "Z"
