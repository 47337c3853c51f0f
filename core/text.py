"""Text from outside as a terminal may safely show it."""

import re

WORD, LINE = 240, 1600
"""Longest word and longest line that are shown whole, in characters."""
_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_LONG = re.compile(rf"\S{{{WORD + 1},}}")


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return found[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def visible(text: str, *, keep: str = "") -> str:
    r"""A text with every control character written out, e.g. ``\x1b`` for an escape.

    Control characters are those that move a cursor, ring, reorder a line (bidirectional marks and
    overrides), or are half of a character. The result can always be encoded.

    Args:
        text: anything.
        keep: characters to leave as they are.
    """
    return _UNSHOWN.sub(lambda m: m[0] if m[0] in keep else _escaped(m), text)


def one_line(text: str) -> str:
    """A text of any length as one line to read: control characters written out, long parts cut.

    A word of more than 240 characters keeps its first ones; a line of more than 1600 keeps its
    beginning and its end, where errors say what to do.
    """
    line = visible(" ".join(text.split(" ")))
    line = _LONG.sub(lambda m: f"{m[0][: WORD - 20]}… ({len(m[0])} characters)", line)
    if len(line) <= LINE:
        return line
    return f"{line[: LINE - 500]} … ({len(line)} characters) … {line[-400:]}"
