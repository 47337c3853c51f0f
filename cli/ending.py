"""A process that ends when the one that started it is gone."""

import os
import signal
import threading

WITHIN = 1.5
"""Seconds after which a process that does not let go is ended by the system."""


def end_with_parent() -> None:
    """End this process, as by SIGTERM, when the one that holds its standard input is gone.

    What it writes appears whole or not at all, so that it may be cut short at any moment.
    """

    def watch() -> None:
        while os.read(0, 4096):
            pass
        signal.setitimer(signal.ITIMER_REAL, WITHIN)  # SIGALRM ends a process that waits in C too
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
