"""What a person sees: lines on stderr, a bar with time left, results on stdout."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..core import processes
from ..core.progress import reporting

err = Console(stderr=True, highlight=False, quiet=not processes.first())
out = Console(highlight=False, quiet=not processes.first())
QUIET_SECONDS = 20.0
"""Without a terminal, a line of progress at most this often."""


def say(line: str) -> None:
    """A line about what happens, on stderr; brackets in it are text."""
    err.print(escape(line), soft_wrap=True)


@dataclass
class _Lines:
    """Progress for logs: a line now and then instead of a bar."""

    last: float = field(default_factory=time.monotonic)

    def __call__(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last >= QUIET_SECONDS:
            self.last = now
            say(f"  {label}: {done}/{total}")


@contextmanager
def progress() -> Iterator[None]:
    """Show progress of everything inside the block, with time left where there is a terminal."""
    if not err.is_terminal:
        with reporting(_Lines()):
            yield
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, int] = {}

        def listen(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(escape(label), total=total)
            bars.update(tasks[label], completed=done, total=total)  # pyright: ignore
            if done >= total:
                bars.remove_task(tasks.pop(label))  # pyright: ignore

        with reporting(listen):
            yield
