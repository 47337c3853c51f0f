"""Work side by side: what it leaves, what it says, and how it ends."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from loratomy.core import lanes
from loratomy.core.console import relayed, say
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.lanes import side_by_side
from loratomy.core.progress import report, reporting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")


def _meet(mine: Path, other: Path) -> None:
    """Ends only when the other one has begun."""
    mine.write_text(str(os.getpid()))
    until = time.monotonic() + 60
    while not other.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_two_pieces_run_at_the_same_time_in_processes_of_their_own(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    side_by_side([partial(_meet, a, b), partial(_meet, b, a)], jobs=2)
    pids = {int(a.read_text()), int(b.read_text()), os.getpid()}
    assert len(pids) == 3


def test_no_more_than_the_wanted_number_run_at_a_time(tmp_path):
    def piece(number: int) -> None:
        (tmp_path / f"on-{number}").touch()
        time.sleep(0.1)
        (tmp_path / f"seen-{number}").write_text(str(len(list(tmp_path.glob("on-*")))))
        (tmp_path / f"on-{number}").unlink()

    side_by_side([partial(piece, i) for i in range(5)], jobs=2)
    seen = [int(p.read_text()) for p in tmp_path.glob("seen-*")]
    assert len(seen) == 5 and max(seen) <= 2


def test_with_one_job_the_pieces_run_here_in_order():
    done: list[tuple[int, int]] = []
    side_by_side([partial(lambda i: done.append((i, os.getpid())), i) for i in range(3)], jobs=1)
    assert done == [(i, os.getpid()) for i in range(3)] and not lanes.inside()


def test_a_piece_computes_with_what_is_loaded_here_on_one_thread(tmp_path):
    import torch

    weight = torch.randn(64, 64)
    _ = weight @ weight  # threads of this process have been used

    def piece(name: str) -> None:
        assert lanes.inside() and torch.get_num_threads() == 1
        torch.save((weight @ weight).sum(), tmp_path / name)

    side_by_side([partial(piece, "a"), partial(piece, "b")], jobs=2)
    for name in ("a", "b"):
        torch.testing.assert_close(torch.load(tmp_path / name), (weight @ weight).sum())


def test_messages_and_progress_appear_here():
    def piece(name: str) -> None:
        say(f"{name} [x]")
        report(name, 1, 2)

    said: list[str] = []
    heard: list[tuple[str, int, int]] = []
    with relayed(said.append), reporting(lambda *what: heard.append(what)):
        side_by_side([partial(piece, "a"), partial(piece, "b")], jobs=2)
    assert sorted(said) == ["a [x]", "b [x]"]
    assert sorted(heard) == [("a", 1, 2), ("b", 1, 2)]


def _sleep(there: Path) -> None:
    there.write_text(str(os.getpid()))
    time.sleep(60)


def _after(there: Path, error: Exception) -> None:
    while not (there.exists() and there.read_text()):
        time.sleep(0.01)
    raise error


def _gone(there: Path) -> bool:
    return not os.path.exists(f"/proc/{there.read_text()}")


@pytest.mark.parametrize("error", [DataError("no rows"), ZeroDivisionError("by zero")])
def test_an_error_of_one_is_raised_here_and_ends_the_others(tmp_path, error):
    there, began = tmp_path / "pid", time.monotonic()
    with pytest.raises(type(error), match=str(error)):
        side_by_side([partial(_sleep, there), partial(_after, there, error)], jobs=2)
    assert _gone(there) and time.monotonic() - began < 30


def test_a_killed_piece_is_an_error_that_says_what_to_do(tmp_path):
    def killed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    there = tmp_path / "pid"
    with pytest.raises(LoratomyError, match=r"ended with -9 .*--jobs 1"):
        side_by_side([partial(_sleep, there), killed], jobs=2)


def test_no_piece_goes_on_when_the_process_that_started_it_is_killed(tmp_path):
    code = f"""
import os, pathlib, time
from functools import partial
from loratomy.core.lanes import side_by_side

def piece(name):
    pathlib.Path({str(tmp_path)!r}, name).write_text(str(os.getpid()))
    time.sleep(60)

side_by_side([partial(piece, "a"), partial(piece, "b")], jobs=2)
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while not all((tmp_path / n).exists() and (tmp_path / n).read_text() for n in "ab"):
        assert parent.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while not all(_gone(tmp_path / n) for n in "ab"):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_with_a_gpu_in_use_the_pieces_run_here(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    pids: list[int] = []
    side_by_side([lambda: pids.append(os.getpid())] * 2, jobs=2)
    assert pids == [os.getpid()] * 2 and lanes.cores() == 1


def test_an_error_that_cannot_travel_comes_in_words(tmp_path):
    class OddError(Exception):
        def __init__(self, one, two):
            super().__init__(one)
            self.two = lambda: two

    def odd() -> None:
        raise OddError("what", "ever")

    with pytest.raises(RuntimeError, match="OddError: what"):
        side_by_side([odd, partial(_sleep, tmp_path / "pid")], jobs=2)


def test_a_signal_to_all_lets_a_step_end_and_says_nothing_more(tmp_path):
    code = f"""
import pathlib, time
from functools import partial
from loratomy.core.lanes import side_by_side
from loratomy.core.stopping import Stopped, after_a_step, listen, wanted

def piece(name):
    with after_a_step():
        pathlib.Path({str(tmp_path)!r}, name).touch()
        while not wanted():
            time.sleep(0.01)
        time.sleep(0.5)  # the step goes on
        pathlib.Path({str(tmp_path)!r}, name + "-ended").touch()

listen()
try:
    side_by_side([partial(piece, "a"), partial(piece, "b")], jobs=2)
except Stopped as error:
    raise SystemExit(error.code)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not all((tmp_path / n).exists() for n in "ab"):
        assert parent.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.killpg(parent.pid, signal.SIGUSR1)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == 75 and said == ""
    assert all((tmp_path / f"{n}-ended").exists() for n in "ab")
