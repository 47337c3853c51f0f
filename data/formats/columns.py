"""The columns of published data by what they hold: prompts, answers, system texts, turns."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from ...core.errors import DataError
from ...core.rows import ROLES, Row, unwritable
from .badrows import RowError
from .turns import Turn, speaks, turns_of

PROMPTS = ("instruction", "prompt", "question", "query", "goal", "problem", "inputs")
"""Columns that hold the user's question, the likeliest first."""
BELOW = ("input", "context")
"""Columns that are put below the prompt; the prompt itself where there is no other."""
ANSWERS = (
    *("completion", "output", "response", "answer", "answers", "chosen", "canonical_solution"),
    *("solution", "reply", "best_answer", "targets"),
)
"""Columns that hold the reference answer, the likeliest first."""
SYSTEMS = ("system", "system_prompt", "system_message")
"""Columns that hold the system text."""
TALKS = ("messages", "conversations", "conversation", "dialog", "dialogue")
"""Columns that hold a chat as a list of messages."""
OWN = tuple(field.name for field in fields(Row))
"""The fields of a row of ours."""
KNOWN = tuple(
    dict.fromkeys((*PROMPTS, *BELOW, *ANSWERS, *SYSTEMS, *TALKS, *OWN, "rejected", "text"))
)
"""Every column that some format reads."""
MEANINGS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "prompt": ("prompt", PROMPTS),
    "input": ("input", BELOW),
    "answer": ("completion", ANSWERS),
    "system": ("system", SYSTEMS),
    "history": ("history", ()),
    "target": ("target", ()),
    "messages": ("messages", TALKS),
    "text": ("text", ()),
}
"""Meanings of ``--column MEANING=NAME``: the column it becomes, and those that it replaces."""

Columns = Mapping[str, str]
"""Meaning -> the name of the column that has it."""


class Named(dict[str, str]):
    """Columns that the user named, and which of them any row had that was read since."""

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__(names)
        self.met: set[str] = set()
        self.seen: dict[str, None] = {}

    def look(self, record: Mapping[str, Any]) -> None:
        """Take note of a row's columns."""
        if len(self.seen) < 100:
            self.seen.update(dict.fromkeys(map(str, record)))
        self.met.update(name for name in self.values() if name in record)

    def check(self) -> None:
        """Raise where rows were read and none had one of the columns.

        Raises:
            DataError: with the columns that there are, and the nearest.
        """
        for meaning, name in self.items():
            if self.seen and name not in self.met:
                near = get_close_matches(name, self.seen, n=1)
                raise DataError(
                    f"--column {meaning}={name}: no row has such a column; there are "
                    f"{key_list(self.seen)}" + (f"; did you mean {near[0][:40]!r}?" if near else "")
                )


def is_row(keys: Iterable[str]) -> bool:
    """Whether keys are those of a row, not of a document around rows."""
    return any(plain(key) in KNOWN for key in keys)


@lru_cache(maxsize=4096)
def plain(key: str) -> str:
    """A column's name in lower case with underscores: ``System Prompt`` is ``system_prompt``."""
    return re.sub(r"[\s-]+", "_", key.strip().lower())


def key_list(record: Iterable[str]) -> str:
    """The keys of a record for an error, cut to a line."""
    keys = list(record)
    shown = [str(key)[:40] for key in keys][:12]
    return f"{shown}" + (f" and {len(keys) - len(shown)} more" if len(keys) > 12 else "")


def column_names(pairs: Iterable[str]) -> Named:
    """``MEANING=NAME`` options as a mapping.

    Raises:
        DataError: no such meaning, or no name.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        meaning, _, name = pair.partition("=")
        if meaning not in MEANINGS or not name.strip():
            raise DataError(
                f"--column {pair!r}: write MEANING=NAME with a meaning of {', '.join(MEANINGS)}, "
                "e.g. answer=response"
            )
        if found.setdefault(meaning, name) != name:
            raise DataError(
                f"--column {meaning}={name}: {meaning} is {found[meaning]!r} already; name it "
                "once, and rename the columns of files that differ"
            )
    return Named(found)


def renamed(record: Mapping[str, Any], columns: Named, where: str) -> dict[str, Any]:
    """The record under plain names, the columns that the user named under what they mean.

    Raises:
        DataError: two columns of the same plain name.
    """
    columns.look(record)
    taken = {name: MEANINGS[meaning] for meaning, name in columns.items() if name in record}
    replaced = {other for _, others in taken.values() for other in others}
    found: dict[str, Any] = {}
    for key, value in record.items():
        name = taken[key][0] if key in taken else plain(str(key))
        if key not in taken and (name in replaced or name in {to for to, _ in taken.values()}):
            continue
        if name in found:
            raise DataError(f"{where}: two columns are called {name[:40]!r}; rename one of them")
        found[name] = value
    return found


def text(record: Mapping[str, Any], key: str, where: str) -> str:
    """The text in a column.

    Raises:
        RowError: no text, or one that no file can hold.
    """
    value = record[key]
    if not isinstance(value, str):
        raise RowError(where, f"{key} must be a str, found {type(value).__name__}")
    if bad := unwritable(value):
        raise RowError(where, f"{key} contains {bad}; remove it")
    return value


def optional(record: Mapping[str, Any], key: str, where: str) -> str | None:
    """The text in a column; None where it is null or not there."""
    return None if record.get(key) is None else text(record, key, where)


def filled(record: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the columns that hold something, else those that are there at all."""
    there = [name for name in names if name in record]
    full = [n for n in there if (v := record[n]) is not None and not _blank(v)]
    return full or [n for n in there if record[n] is not None] or there


def _blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def answer_in(record: Mapping[str, Any], key: str, where: str) -> str | None:
    """The answer in a column: a text, or the first of several (SQuAD's ``answers``)."""
    value = record.get(key)
    if key == "answers" and isinstance(value, dict):
        value = value.get("text")
    if key == "answers" and isinstance(value, list):
        value = value[0] if value else None
    return optional({key: value}, key, where)


def joined(parts: Iterable[str | None], where: str) -> str:
    """The parts that are not blank with blank lines between.

    Raises:
        RowError: all of them are blank.
    """
    prompt = "\n\n".join(part for part in parts if part and part.strip())
    if not prompt:
        raise RowError(where, "the prompt is empty")
    return prompt


def system_in(record: Mapping[str, Any], where: str) -> str | None:
    """The system text; None where there is none.

    Raises:
        RowError: no text, or two columns that differ.
    """
    texts = {name: optional(record, name, where) for name in SYSTEMS if name in record}
    full = {name: value for name, value in texts.items() if value and value.strip()}
    if len(set(full.values())) > 1:
        raise RowError(where, f"{' and '.join(full)} differ; keep one of them")
    return next(iter(full.values()), None)


def history_in(record: Mapping[str, Any], where: str) -> tuple[Turn, ...]:
    """Earlier turns: ``[[question, answer], ...]``, messages, or ``[[role, text], ...]`` of ours.

    Raises:
        RowError: none of these.
    """
    value = listed(record.get("history"))
    if not value or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return tuple(turns_of(value, where, "history"))
    pairs = isinstance(value, list) and all(
        isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(t, str) for t in turn)
        for turn in value
    )
    if not pairs:
        raise RowError(
            where, "history must be a list of [question, answer] pairs or of messages, found "
            f"{str(value)[:60]!a}"
        )  # fmt: skip
    if all(turn[0] == ROLES[i % 2] for i, turn in enumerate(value)):
        found = [(role, turn) for role, turn in value]
    else:
        found = [turn for pair in value for turn in zip(ROLES, pair, strict=True)]
    for _, turn in found:
        if bad := unwritable(turn):
            raise RowError(where, f"history contains {bad}; remove it")
    return tuple(found)


def messages_in(value: Any) -> Any:
    """A list of messages that a table keeps as JSON text; other values, also other lists, as is."""
    found = listed(value) if isinstance(value, str) else value
    is_chat = isinstance(found, list) and found and all(map(speaks, found))
    return found if is_chat else value


def listed(value: Any) -> Any:
    """A list that a table keeps as JSON text; other values as they are."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
