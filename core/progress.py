"""Progress of long work: a no-op in the library, a bar with time left under the CLI."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Reporter = Callable[[str, int, int], None]
"""Called with a label, the steps done and the steps in all."""

_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def report(label: str, done: int, total: int) -> None:
    """Report to the listener that `done` of `total` steps of `label` are over."""
    if (listener := _reporter.get()) is not None:
        listener(label, done, total)


def tracked(items: Sequence[T], label: str) -> Iterator[T]:
    """The items themselves, reported one by one as they are finished."""
    report(label, 0, len(items))
    for done, item in enumerate(items, 1):
        yield item
        report(label, done, len(items))


def listened() -> bool:
    """Whether anybody listens to progress."""
    return _reporter.get() is not None


@contextmanager
def reporting(listener: Reporter) -> Iterator[None]:
    """Send all progress made inside the block to `listener`."""
    token = _reporter.set(listener)
    try:
        yield
    finally:
        _reporter.reset(token)
