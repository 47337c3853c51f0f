"""What a person sees: lines on stderr, a bar with time left, results on stdout."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from . import processes
from .progress import listened, reporting
from .text import one_line, visible


class Terminal(Console):
    """A console that writes control characters out, whatever is printed and however."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """The segments of something to print, the text in them safe to show."""
        for segment in super().render(renderable, options):
            if segment.control is None:
                yield Segment(visible(segment.text, keep="\n"), segment.style)
            else:
                yield segment


err = Terminal(stderr=True, highlight=False, quiet=not processes.first())
out = Terminal(highlight=False, quiet=not processes.first())
QUIET_SECONDS = 20.0
"""Without a terminal, a line of progress at most this often."""


_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def say(line: str) -> None:
    """A line about what happens, on stderr; brackets in it are text, long parts are cut."""
    if (listener := _listener.get()) is not None:
        listener(line)
    else:
        err.print(escape(one_line(line)), soft_wrap=True)


@contextmanager
def relayed(listener: Callable[[str], None]) -> Iterator[None]:
    """Pass the lines of `say` inside the block to `listener` instead of printing them."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def cell(text: str) -> str:
    """A text for a cell of a table: brackets in it are text, long parts are cut; lines stay."""
    return escape("\n".join(one_line(line) for line in text.split("\n")))


def say_json(value: Any) -> None:
    """A value on stdout as JSON text, in which no character moves a terminal."""
    from .records.io import dumps  # with numpy, which --help does without

    text = dumps(value)
    safe = text if text.isascii() else "".join(map(_json_escape, text))
    print(safe.replace("\x7f", "\\u007f"), end="", file=out.file)


def _json_escape(character: str) -> str:
    if character.isascii() or visible(character) == character:
        return character
    return json.dumps(character)[1:-1]


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
    """Show progress of everything inside the block, with time left where there is a terminal.

    Inside another such block, or where something else listens, that one goes on.
    """
    if listened():
        yield
        return
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
