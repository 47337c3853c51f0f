"""One registry for families, attacks, methods, figures: names in, the registered thing out."""

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from .errors import LoratomyError

T = TypeVar("T")


def nearest(name: str, known: list[str]) -> str:
    """A hint for an unknown name: the nearest known ones, else all of them."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known)}"


def function_of(item: Any) -> Any:
    """The function behind something registered, as it was written."""
    found = getattr(item, "run", None) or getattr(item, "score", None) or item
    return inspect.unwrap(found) if callable(found) else found


def module_of(item: Any) -> str:
    """The module in which something registered was written."""
    return str(getattr(function_of(item), "__module__", type(item).__module__))


def is_ours(module: str) -> bool:
    """Whether a module is this project's."""
    return module.split(".")[0] == "loratomy"


class Registry(Generic[T]):
    """Named things of one kind, in the order in which they were registered."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files its object under `name`.

        A name of this project's cannot be used again; one of somebody else's is replaced when it is
        registered again from the same module, as when a cell of a notebook is run again.

        Raises:
            LoratomyError: the name is taken.
        """

        def put(item: T) -> T:
            if name in self._items:
                old, new = module_of(self._items[name]), module_of(item)
                if old != new or is_ours(old) or not callable(function_of(item)):
                    raise LoratomyError(
                        f"{self.kind} {name!r} is registered twice (by {old} and {new}); take "
                        "another name"
                    )
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
