"""The objects of a JSON document, one after the other, without the document.

The standard library's decoder takes one object at a time from a window on the text, so that a list
gives the same as the same objects line by line. ijson, the usual choice, does not: yajl turns half
a surrogate pair into ``?`` or into another character without a word, and its pure-Python parser is
slower and leaves tracebacks when a reader stops early.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from ...core.errors import DataError
from ..formats.badrows import RowError

MAX_ROW = 64 * 2**20
"""The longest object or line, in characters or bytes; what is longer is no data of this kind."""
CHUNK = 2**16

_BLANK = re.compile(r"[ \t\n\r]*")


class Decoder:
    """JSON texts to values; notes a key that is in one object twice, which is an error."""

    def __init__(self) -> None:
        self.twice = ""
        self._decode = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs) and not self.twice:
            keys = [key for key, _ in pairs]
            self.twice = next(key for key in keys if keys.count(key) > 1)
        return found

    def from_place(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at a place, and where it ends."""
        self.twice = ""
        return self._decode.raw_decode(text, at)

    def whole(self, text: str) -> Any:
        """The value that a text is."""
        self.twice = ""
        return self._decode.decode(text)

    def problem(self) -> str:
        """What is wrong with the last value though it could be read; empty for nothing."""
        return f"the key {self.twice[:40]!a} is twice in one object" if self.twice else ""


class Window:
    """A stretch of a text: what has been read and not yet used."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self.stream, self.text, self.at = stream, "", 0
        self.decoder = Decoder()

    def more(self, size: int) -> bool:
        """Read on; whether there was anything."""
        new = self.stream.read(size)
        self.text, self.at = self.text[self.at :] + new, 0
        return bool(new)

    def next(self) -> str:
        """The next character that is not blank, left in place; empty at the end."""
        while True:
            blank = _BLANK.match(self.text, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more(CHUNK):
                return ""

    def take(self) -> Any:
        """The value that begins here."""
        size = CHUNK
        while True:
            try:
                value, at = self.decoder.from_place(self.text, self.at)
                if at == len(self.text) and not isinstance(value, dict | list | str):
                    if self.more(size):  # a number may go on
                        continue
                    at = len(self.text)
                self.at = at
                return value
            except json.JSONDecodeError as error:
                # Only more text can show whether it is cut off or broken; twice as much each time,
                # so that beginning again costs no more than reading did.
                reason = f"{error.msg}, at {self.seen(error.pos)}"
                size *= 2
                if len(self.text) - self.at > MAX_ROW or not self.more(size):
                    raise DataError(f"broken JSON ({reason})") from error
            except RecursionError as error:
                raise DataError("nested too deep to read") from error
            except ValueError as error:  # a number of thousands of digits
                raise DataError(f"broken JSON ({error})") from error

    def skip(self, mark: str) -> None:
        """Go past a mark that must come next.

        Raises:
            DataError: it does not.
        """
        if self.next() != mark:
            raise DataError(f"broken JSON (expected {mark}, found {self.seen()})")
        self.at += 1

    def seen(self, at: int | None = None) -> str:
        """The text here, or at a place of the window, in a few characters for an error."""
        text = self.text[self.at if at is None else at :][:20]
        return ascii(text) if text else "the end of the file"

    def items(self) -> Iterator[tuple[Any, str]]:
        """The items of the list that begins here, each with its first characters."""
        self.skip("[")
        more = self.next() != "]"
        while more:
            first, seen = self.next(), self.seen()
            if first in ",]}:":  # or nothing at all
                raise DataError(f"expected a JSON object, found {seen}")
            yield self.take(), seen
            if self.next() not in {",", "]"}:
                raise DataError(f"broken JSON (expected a comma or ], found {self.seen()})")
            more = self.next() == ","
            self.at += more
        self.at += 1


def list_objects(window: Window, name: str) -> Iterator[dict[str, Any] | RowError]:
    """The objects of the list at the window's place; for an item that is none, what is wrong.

    Raises:
        DataError: broken JSON; with the row.
    """
    number = 1
    try:
        for value, seen in window.items():
            where = f"{name}, row {number}"
            if not isinstance(value, dict):
                yield RowError(where, f"expected a JSON object, found {seen}")
            elif problem := window.decoder.problem():
                yield RowError(where, problem)
            else:
                yield value
            number += 1
    except DataError as error:
        raise DataError(f"{name}, row {number}: {error}") from error.__cause__


def at_end(window: Window, name: str, row: int) -> None:
    """Raise unless the text ends here."""
    if window.next():
        raise DataError(
            f"{name}, row {row}: broken JSON (more text after the list: {window.seen()})"
        )


def members(window: Window) -> dict[str, str]:
    """The keys of the object at the window's place: ``rows`` for a list of objects, ``object``,
    ``list`` or ``value`` for the rest; nothing of their values is held.

    Raises:
        DataError: broken JSON, or a key that is there twice.
    """
    found: dict[str, str] = {}
    window.skip("{")
    more = window.next() != "}"
    while more:
        key = member_key(window)
        if key in found:
            raise DataError(f"the key {key[:40]!a} is twice in one object")
        if window.next() == "[":
            kinds = {type(value) for value, _ in window.items()}
            found[key] = "rows" if kinds == {dict} else "list"
        else:
            found[key] = "object" if isinstance(window.take(), dict) else "value"
        if window.next() not in {",", "}"}:
            raise DataError(f"broken JSON (expected a comma or }}, found {window.seen()})")
        more = window.next() == ","
        window.at += more
    window.at += 1
    return found


def member_key(window: Window) -> str:
    """The key that comes next, with the window at its value."""
    if window.next() != '"':
        raise DataError(f"broken JSON (expected a key in double quotes, found {window.seen()})")
    key = window.take()
    window.skip(":")
    return key


def go_to(window: Window, key: str) -> None:
    """Go to the value of a key of the object at the window's place, which is known to have it."""
    window.skip("{")
    while member_key(window) != key:
        if window.next() == "[":
            for _ in window.items():
                pass
        else:
            window.take()
        window.skip(",")
    window.next()
