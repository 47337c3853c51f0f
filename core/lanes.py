"""Pieces of work side by side on one machine, each in a forked process with one thread.

The products of a small model gain little from a second thread, so two stages at a time, each on one
core, are done before the two one after the other (docs/performance.md).
"""

import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from . import processes
from .console import relayed, say
from .errors import LoratomyError
from .progress import report, reporting
from .stopping import GRACE, Stopped, end_with, only_once

Piece = Callable[[], Any]
SAY, REPORT, ERROR = "say", "report", "error"
"""Kinds of messages of a piece to the process that started it."""


class _Here:
    inside = False


def inside() -> bool:
    """Whether this process is one of several that work side by side."""
    return _Here.inside


def cores() -> int:
    """How many processor cores this process may use; 1 where it cannot be forked."""
    return len(os.sched_getaffinity(0)) if can_fork() else 1


def can_fork() -> bool:
    """Whether this process may fork: not outside Linux, under a launcher, or with a GPU in use."""
    torch: Any = sys.modules.get("torch")
    if sys.platform != "linux" or processes.count() > 1:
        return False
    return torch is None or not torch.cuda.is_initialized()


def side_by_side(pieces: Sequence[Piece], *, jobs: int) -> None:
    """Run functions, `jobs` at a time, each in a forked process with one thread.

    A piece starts with everything that this process holds (loaded models among it), and only what
    it writes to files is left of it: its return value and its changes of variables are lost. Its
    messages and its progress appear here. However this ends, by an exception too, no piece goes on
    after it.

    Args:
        pieces: what to run, started in this order.
        jobs: processes at a time. With 1, and where this process cannot be forked (not Linux, a
            GPU in use, a launcher's process), the pieces run here, one after the other.

    Raises:
        Exception: the first error of a piece; the others are ended.
        LoratomyError: a process was killed.
    """
    if jobs == 1 or len(pieces) == 1 or not can_fork():
        for piece in pieces:
            piece()
        return
    context = multiprocessing.get_context("fork")
    waiting, going = list(pieces), dict[Connection, Any]()
    alive, holder = os.pipe()  # closed for all pieces when this process is gone
    try:
        while waiting or going:
            while waiting and len(going) < jobs:
                here, there = context.Pipe(duplex=False)
                lane = context.Process(target=_run, args=(waiting.pop(0), there, alive, holder))
                lane.start()
                there.close()
                going[here] = lane
            for here in wait(list(going)):
                assert isinstance(here, Connection)
                if not _heard(here):
                    lane = going.pop(here)
                    lane.join()
                    if lane.exitcode:
                        raise LoratomyError(
                            f"a process beside this one ended with {lane.exitcode} (killed, or out "
                            "of memory); run the same command again, with --jobs 1 if it recurs"
                        )
    finally:
        _end(list(going.values()))
        os.close(alive)
        os.close(holder)


def _heard(here: Connection) -> bool:
    """Pass a message on; False when there will be no more.

    Raises:
        Exception: of the piece.
    """
    try:
        kind, value = here.recv()
    except EOFError:
        return False
    if kind == ERROR:
        raise value
    if kind == SAY:
        say(value)
    else:
        report(*value)
    return True


def _end(lanes: Sequence[Any]) -> None:
    for lane in lanes:
        lane.terminate()
    for lane in lanes:
        lane.join(GRACE)
        if lane.is_alive():
            lane.kill()
            lane.join()


def _run(piece: Piece, there: Connection, alive: int, holder: int) -> None:
    """A piece in its own process, which ends without a word: the one that started it speaks."""
    _Here.inside, code = True, 1
    try:
        os.close(holder)
        end_with(alive)
        only_once()
        _work(piece, there)
        code = 0
    except (Stopped, KeyboardInterrupt):
        pass  # the process that started it ends too, and says why
    finally:
        os._exit(code)


def _work(piece: Piece, there: Connection) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    try:
        with (
            threadpool_limits(1),
            relayed(lambda line: there.send((SAY, line))),
            reporting(lambda *done: there.send((REPORT, done))),
        ):
            piece()
    except Exception as error:
        there.send((ERROR, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error, with its trace as a note where nobody foresaw it; in words if it cannot travel."""
    if not isinstance(error, LoratomyError):
        error.add_note("in a process beside this one:\n" + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    return error
