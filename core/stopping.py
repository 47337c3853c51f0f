"""Ending early on a signal: at once, or in a fit after the checkpoint of the step at hand."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NEAR_END = getattr(signal, "SIGUSR1", None)
"""Sent by schedulers some time before the wall time is over."""
CODES = {signal.SIGTERM: 143, **({NEAR_END: 75} if NEAR_END else {})}
"""Signal -> exit code; 75 (EX_TEMPFAIL): the same command goes on when it is run again."""

WITHIN, GRACE = 1.5, 20.0
"""Seconds after which the system ends a process that does not let go; that other processes get."""


class Stopped(BaseException):
    """A signal to end: unwind, release the lock, keep existing results."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def code(self) -> int:
        """Exit code of the program."""
        return CODES[signal.Signals(self.number)]


class _Signal:
    waiting = False
    number = 0
    once = False


def listen() -> None:
    """Take the signals from now on; call it in the main thread."""
    for number in CODES:
        signal.signal(number, _stop)


def _stop(number: int, _frame: Any) -> None:
    if _Signal.waiting and (_Signal.once or not _Signal.number):
        _Signal.number = _Signal.number or number
        return
    raise Stopped(number)


@contextmanager
def after_a_step() -> Iterator[None]:
    """Inside, a first signal waits until `wanted` is looked at; a second one ends at once."""
    _Signal.waiting, _Signal.number = True, 0
    try:
        yield
    finally:
        _Signal.waiting = False
    stop_if_wanted()


def only_once() -> None:
    """From now on a second signal does not cut short what waits for the end of a step."""
    _Signal.once = True


def wanted() -> bool:
    """Whether a signal that came inside `after_a_step` waits."""
    return _Signal.number != 0


def stop_if_wanted() -> None:
    """Raise where a signal waits.

    Raises:
        Stopped: with the signal.
    """
    if _Signal.number:
        number, _Signal.number = _Signal.number, 0
        raise Stopped(number)


def end_with(pipe: int = 0) -> None:
    """End this process, as by SIGTERM, when nobody holds the other end of a pipe any more.

    What it writes appears whole or not at all, so that it may be cut short at any moment.

    Args:
        pipe: the file descriptor to read from; by default standard input.
    """

    def watch() -> None:
        while os.read(pipe, 4096):
            pass
        signal.setitimer(signal.ITIMER_REAL, WITHIN)  # SIGALRM ends a process that waits in C too
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
