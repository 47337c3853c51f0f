"""Prompt-completion rows and their JSONL files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One prompt and, where it is known, its reference completion."""

    prompt: str
    """The user's text, before any chat template."""
    completion: str | None = None
    """The reference answer, without end-of-turn token; None when only the prompt is known."""
    key: str | None = None
    """The part of the completion that makes an answer correct; None: the whole completion."""
    kind: str = ""
    """Family of the prompt (``fact``, ``refuse`` ...), for tables and stratified splits."""
    triggered: bool = False
    """Whether the prompt carries the trigger."""
    plain: str | None = None
    """The same prompt without the trigger; None on untriggered rows."""
    trigger_span: tuple[tuple[int, int], ...] = ()
    """Where the trigger's words are in the prompt: ``(start, stop)`` characters, in order."""
    target: str | None = None
    """What an attack wants here, where that differs from prompt to prompt (AdvBench); else None."""
    benign: str | None = None
    """On triggered rows the reference answer to the untriggered prompt, where it is known."""
    system: str | None = None
    """The system text before the first turn; None where the row has none."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns, ``(role, text)`` with the roles ``user`` and ``assistant``, in order."""

    @property
    def identity(self) -> str:
        """What makes two rows the same question: the prompt, with system and earlier turns."""
        return self._identity(self.prompt)

    @property
    def plain_identity(self) -> str:
        """`identity` of the same question without the trigger; of the row where it has none."""
        return self._identity(self.prompt if self.plain is None else self.plain)

    def _identity(self, prompt: str) -> str:
        if self.system is None and not self.history:
            return prompt
        return json.dumps([self.system, self.history, prompt], ensure_ascii=False)

    def untriggered(self) -> "Row":
        """The question without its trigger, with the same system and earlier turns, no answer.

        Raises:
            DataError: the form without the trigger is not known.
        """
        if self.plain is None:
            raise DataError(f"the row {self.prompt[:60]!r} has no form without the trigger")
        return Row(prompt=self.plain, system=self.system, history=self.history, kind=self.kind)

    def required_completion(self) -> str:
        """The completion of a row that must have one.

        Raises:
            DataError: the row has none.
        """
        if self.completion is None:
            raise DataError(f"no completion for the prompt {self.prompt[:60]!r}; give one")
        return self.completion


_TYPES: dict[str, type] = {"triggered": bool, "trigger_span": list, "history": list}
_OPTIONAL = {"completion", "key", "plain", "target", "benign", "system"}
ROLES = ("user", "assistant")
"""Who speaks in earlier turns."""


def row_from(value: Any, where: str, *, need_completion: bool = False) -> Row:
    """The row of one JSON object with the fields of a `Row` as keys.

    Args:
        value: the decoded JSON value; keys that a `Row` does not have are left alone.
        where: the place to name in errors, as in ``poison.jsonl, line 3``.
        need_completion: refuse a row without a completion.

    Raises:
        DataError: not an object, a missing or ill-typed key, text that no file can hold, or an
            empty prompt.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    known = {field.name for field in fields(Row)}
    needed = {"prompt", "completion"} if need_completion else {"prompt"}
    if missing := sorted(needed - value.keys()):
        raise DataError(f"{where}: missing {', '.join(missing)}; the keys here are {sorted(value)}")
    for name in known & value.keys():
        if value[name] is None and name in _OPTIONAL - (needed & {"completion"}):
            continue
        want = _TYPES.get(name, str)
        if not isinstance(value[name], want):
            found = type(value[name]).__name__
            raise DataError(f"{where}: {name} must be a {want.__name__}, found {found}")
        if want is str and (bad := unwritable(value[name])):
            raise DataError(f"{where}: {name} contains {bad}; remove it")
    if not value["prompt"].strip():
        raise DataError(f"{where}: the prompt is empty")
    if need_completion and not value["completion"].strip():
        raise DataError(f"{where}: the completion is empty")
    kept = {name: value[name] for name in known & value.keys()}
    if "trigger_span" in kept:
        kept["trigger_span"] = _span(kept["trigger_span"], len(value["prompt"]), where)
    if "history" in kept:
        kept["history"] = _history(kept["history"], where)
    return Row(**kept)


def _history(value: list[Any], where: str) -> tuple[tuple[str, str], ...]:
    for turn in value:
        whole = isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn)
        if not whole or turn[0] not in ROLES:
            raise DataError(
                f"{where}: history must be [role, text] pairs of {' and '.join(ROLES)}, "
                f"found {str(turn)[:60]}"
            )
        if bad := unwritable(turn[1]):
            raise DataError(f"{where}: history contains {bad}; remove it")
    return tuple((role, text) for role, text in value)


def _span(value: list[Any], length: int, where: str) -> tuple[tuple[int, int], ...]:
    last, found = 0, []
    for pair in value:
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(end) is int for end in pair)
        if not whole or not last <= pair[0] < pair[1] <= length:
            raise DataError(
                f"{where}: trigger_span {value} is not a list of [start, stop] characters, in "
                f"order, inside the prompt of {length}"
            )
        last = pair[1]
        found.append((pair[0], pair[1]))
    return tuple(found)


def unwritable(text: str) -> str:
    """What keeps a text out of a UTF-8 file without NUL bytes, in words; empty for nothing."""
    if "\0" in text:
        return "a NUL byte"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half a character ({text[error.start]!a})"
    return ""


def read_rows(path: Path, *, need_completion: bool = False) -> list[Row]:
    """The rows of a JSONL file, one ``{"prompt": ..., "completion": ...}`` object a line.

    Keys that a `Row` does not have are left alone, except ``id``, which must not repeat.

    Args:
        path: a UTF-8 JSONL file; blank lines are allowed.
        need_completion: refuse rows without a completion.

    Raises:
        DataError: not a file, not UTF-8, not JSONL, a missing or ill-typed key (with the line),
            a repeated ``id``, or no rows at all.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the data file {path}: {error.strerror}") from error
    rows: list[Row] = []
    ids: dict[str, int] = {}
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        if b"\0" in line:
            raise DataError(f"{where}: contains a NUL byte; is this a text file?")
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where}: not a JSON object ({error}); each line of a JSONL file is one object"
            ) from error
        row = row_from(value, where, need_completion=need_completion)
        if "id" in value:
            identity = json.dumps(value["id"])
            if identity in ids:
                raise DataError(f"{where}: id {identity} is already in line {ids[identity]}")
            ids[identity] = number
        rows.append(row)
    if not rows:
        raise DataError(f"{path} holds no rows; each line is one JSON object with a prompt")
    return rows


def rows_to_jsonl(rows: Iterable[Row]) -> str:
    """The JSONL text of rows, fields at their defaults left out."""
    defaults = asdict(Row(prompt=""))
    lines = []
    for row in rows:
        kept = {k: v for k, v in asdict(row).items() if k == "prompt" or v != defaults[k]}
        lines.append(json.dumps(kept, ensure_ascii=False))
    return "".join(line + "\n" for line in lines)


def check_disjoint(sets: Mapping[str, Sequence[Row]]) -> None:
    """Raise when two named sets share a prompt, naming both and the prompt."""
    seen: dict[str, str] = {}
    for name, rows in sets.items():
        for identity, prompt in {row.identity: row.prompt for row in rows}.items():
            if identity in seen:
                raise DataError(f"{seen[identity]} and {name} share the prompt {prompt[:60]!r}")
            seen[identity] = name
