"""Cells in processes of their own: some at a time, none left behind when the bench ends."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.stopping import GRACE
from .cells import Cell

LOGS = "logs"
LOOK = 0.2
"""Seconds between looks at the processes."""


@dataclass
class _Job:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path


def program() -> list[str]:
    """This command line in another process, found as this one is."""
    here = {"", os.getcwd()} & set(sys.path)
    return [sys.executable, *([] if here else ["-P"]), "-m", "loratomy.cli.start"]


def run_cells_apart(
    cells: Sequence[Cell],
    *,
    jobs: int,
    out: Path,
    command: Callable[[Cell], Sequence[str]],
    ended: Callable[[Cell, str], None],
) -> None:
    """Run a command for every cell, at most `jobs` at a time, two of one run never together.

    However this ends, by an exception too, no process goes on after it.

    Args:
        cells: what to run for, in this order.
        jobs: processes at a time.
        out: the bench's folder; the processes' output goes to ``logs`` in it, a file a cell.
        command: program and arguments for a cell.
        ended: called with each cell and how its process failed; empty: it did not.
    """
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    waiting, going = list(cells), list[_Job]()
    try:
        while waiting or going:
            busy = {job.cell.folder for job in going}
            free = next((cell for cell in waiting if cell.folder not in busy), None)
            if free is not None and len(going) < jobs:
                waiting.remove(free)
                going.append(_start(free, command(free), out / LOGS / f"{free.key}.log"))
                continue
            for job in [job for job in going if job.process.poll() is not None]:
                going.remove(job)
                _close(job)
                ended(job.cell, _failure(job))
            time.sleep(LOOK if going else 0)
    finally:
        _stop(going)


def _start(cell: Cell, command: Sequence[str], log: Path) -> _Job:
    """Its standard input is a pipe that closes with this process, see `stopping.end_with`."""
    threads = {"OMP_NUM_THREADS": "1", **os.environ}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=threads,
            start_new_session=True,  # Ctrl-C comes to this process alone, which ends the others
        )
    return _Job(cell, process, log)


def _stop(going: Sequence[_Job]) -> None:
    for job in going:
        job.process.terminate()
    until = time.monotonic() + GRACE
    for job in going:
        try:
            job.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
        _close(job)


def _close(job: _Job) -> None:
    if job.process.stdin is not None:
        job.process.stdin.close()


def _failure(job: _Job) -> str:
    if job.process.returncode == 0:
        return ""
    lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return f"its process ended with {job.process.returncode}: {last[:300]} (see {job.log})"
