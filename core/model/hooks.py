"""Hooks that last as long as a block, and what modules return."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def hooks(handles: Iterable[Any]) -> Iterator[None]:
    """Hooks for as long as the block lasts, whatever happens in it or while they are put on.

    Args:
        handles: as `register_forward_hook` returns them; a generator registers them one by one.
    """
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


def first_of(out: Any) -> Any:
    """A module's output tensor, where others may follow it."""
    return out[0] if isinstance(out, tuple) else out
