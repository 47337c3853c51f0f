"""One registry for families, attacks, methods, figures: names in, the registered thing out."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from .errors import LoratomyError

T = TypeVar("T")


def nearest(name: str, known: list[str]) -> str:
    """A hint for an unknown name: the nearest known ones, else all of them."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known)}"


class Registry(Generic[T]):
    """Named things of one kind, in the order in which they were registered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files its object under `name`; a second use of a name is an error."""

        def put(item: T) -> T:
            if name in self._items:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._items[name] = item
            return item

        return put

    def update(self, **items: T) -> None:
        """File the rows of a table, each under its name."""
        for name, item in items.items():
            self.register(name)(item)

    def arrange(self, *names: str) -> None:
        """Put the named ones first, in this order, whichever was imported first.

        Raises:
            LoratomyError: an unknown name.
        """
        first = {name: self[name] for name in names}
        self._items = first | {k: v for k, v in self._items.items() if k not in first}

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            raise LoratomyError(f"unknown {self.kind} {name!r}; {nearest(name, list(self))}")
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def items(self) -> list[tuple[str, T]]:
        """Names and things, in order."""
        return list(self._items.items())
