"""Regular expressions of an adapter's settings: matched as PEFT matches them, bounded in time."""

import re
import time
from collections.abc import Iterable
from typing import Any

from ..errors import AdapterError

LONGEST = 4000
"""Characters of a pattern; what trainers write has a few hundred."""
SECONDS = 0.5
"""For all patterns of one config together."""
_PLAIN = re.compile(r"[\w.]+", re.ASCII)


class Patterns:
    """The patterns of one config, with the time that is left for matching them."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._left = SECONDS
        self._compiled: dict[str, Any] = {}

    def full(self, field: str, pattern: str, name: str) -> bool:
        """Whether a pattern matches a whole module name, as `re.fullmatch` does.

        Raises:
            AdapterError: it is too long, no regular expression, or takes too long.
        """
        return self._run(field, pattern, pattern, "fullmatch", name) is not None

    def key(self, field: str, keys: Iterable[str], name: str) -> str | None:
        """The first key that fits a module name at its end, as PEFT's `get_pattern_key` finds it.

        Raises:
            AdapterError: as `full`.
        """
        for key in keys:
            if _PLAIN.fullmatch(key):
                if _at_the_end(key, name):
                    return key
            elif self._run(field, key, rf"(.*\.)?({key})$", "match", name) is not None:
                return key
        return None

    def layer(self, field: str, pattern: str | None, name: str) -> int | None:
        """The layer number behind a `layers_pattern` in a module name; None where there is none.

        Raises:
            AdapterError: as `full`.
        """
        before = r".*?\.[^.]*" if not pattern else rf"(?:^|.*?\.){pattern}"
        found = self._run(field, pattern or "", rf"{before}\.(?P<idx>\d+)\.", "match", name)
        return int(found["idx"]) if found is not None else None

    def _run(self, field: str, shown: str, pattern: str, how: str, name: str) -> Any:
        import regex

        if len(shown) > LONGEST:
            raise AdapterError(
                f"{self._source}: {field} is a regular expression of {len(shown):,} characters; at "
                f"most {LONGEST:,} are matched; write a list of module names"
            )
        began = time.monotonic()
        try:
            if pattern not in self._compiled:
                self._compiled[pattern] = regex.compile(pattern)
            found = getattr(self._compiled[pattern], how)(name, timeout=max(self._left, 1e-3))
        except (TimeoutError, RecursionError, MemoryError, OverflowError, regex.error) as error:
            why = str(error)[:80] if isinstance(error, regex.error) else f"over {SECONDS:g} s"
            why = "too deep" if isinstance(error, RecursionError | MemoryError) else why
            raise AdapterError(
                f"{self._source}: {field} {shown[:80]!r}{' ...' * (len(shown) > 80)} is a regular "
                f"expression that cannot be matched safely ({why}); write a list of module names"
            ) from error
        self._left -= time.monotonic() - began
        return found


def _at_the_end(key: str, name: str) -> bool:
    """Whether a key of word characters and dots fits the end of a name; a dot fits any one."""
    start = len(name) - len(key)
    if start < 0 or (start and name[start - 1] != "."):
        return False
    return all(k in (".", c) for k, c in zip(key, name[start:], strict=True))
