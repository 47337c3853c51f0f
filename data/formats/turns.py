"""Chats in the dialects in which they are published, as turns of user and assistant."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...core.rows import Row, unwritable
from .badrows import RowError

Turn = tuple[str, str]
"""``(role, text)`` with the roles system, user and assistant."""

_NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "question", "usr", "client"),
    "assistant": (
        *("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai", "chatbot", "agent"),
        *("claude", "llama", "gemini", "answer", "output", "character"),
    ),
}
ROLE_OF: Mapping[str, str] = {name: role for role, names in _NAMES.items() for name in names}
"""Who speaks in published chats -> the role."""
TOOLS = ("tool", "function", "function_call", "tool_call", "tool_calls", "observation", "ipython")
"""Roles of chats with tools."""
_WHO = ("role", "from", "speaker", "author", "user_type")
_WHAT = ("content", "value", "text", "message", "body")
_TEXTS = ("text", "input_text", "output_text", "refusal")
"""Types of content parts that are text."""


def turns_of(value: Any, where: str, key: str) -> list[Turn]:
    """The turns of a list of messages in any of the dialects.

    Args:
        value: of the column.
        where: the row, for errors.
        key: the column's name.

    Raises:
        RowError: no list of messages, an unknown role, a tool's message, content that is no text.
    """
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else type(value).__name__
        raise RowError(where, f"{key} must be a list of messages, found {found}")
    turns: list[Turn] = []
    for number, message in enumerate(value, 1):
        turns += _turns(message, f"{where}, {key} {number}")
    return turns


def speaks(message: Any) -> bool:
    """Whether a value has the keys of a message: a role, or both sides."""
    return isinstance(message, dict) and (
        any(name in message for name in _WHO) or {"input", "output"} <= message.keys()
    )


def _turns(message: Any, where: str) -> list[Turn]:
    if not isinstance(message, dict):
        raise RowError(where, f"expected a JSON object, found {type(message).__name__}")
    if {"input", "output"} <= message.keys():  # Capybara: both sides in one
        return [(role, _content(message, name, where)) for role, name in _BOTH]
    who = next((name for name in _WHO if message.get(name) is not None), None)
    what = next((name for name in _WHAT if name in message), None)
    if who is None or what is None:
        lacks = [name for name, has in (("role", who), ("content", what)) if has is None]
        keys = [str(key)[:40] for key in message][:12]
        raise RowError(where, f"missing {', '.join(lacks)}; the keys here are {keys}")
    speaker = message[who]
    if not isinstance(speaker, str):
        raise RowError(where, f"{who} must be a str, found {type(speaker).__name__}")
    name = speaker.strip().lower()
    calls = [call for call in ("tool_calls", "function_call") if message.get(call)]
    if name in TOOLS or calls:
        found = f"the role {speaker[:40]!a}" if name in TOOLS else calls[0]
        raise RowError(where, f"tools are not read: a message with {found}; leave such rows out")
    if name not in ROLE_OF:
        known = "system, user, assistant, human, gpt ..."
        raise RowError(where, f"unknown role: {speaker[:40]!a} is none of {known}")
    return [(ROLE_OF[name], _content(message, what, where))]


_BOTH = (("user", "input"), ("assistant", "output"))


def _content(message: Mapping[str, Any], key: str, where: str) -> str:
    """The text of a message, or of all parts of one."""
    value = message[key]
    if value is None:
        raise RowError(where, f"{key} is null; give its text, or leave the row out")
    if isinstance(value, list):
        value = "\n".join(_part(part, number, where) for number, part in enumerate(value, 1))
    if not isinstance(value, str):
        raise RowError(where, f"{key} must be a str, found {type(value).__name__}")
    if bad := unwritable(value):
        raise RowError(where, f"{key} contains {bad}; remove it")
    return value


def _part(part: Any, number: int, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if isinstance(part, dict) and (kind in _TEXTS or kind is None):
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, str):
            return text
        raise RowError(where, f"content part {number} holds no text")
    raise RowError(where, f"only text is read: content part {number} is of type {str(kind)[:40]!a}")


def row_of_turns(turns: Sequence[Turn], where: str, key: str, *, system: str | None = None) -> Row:
    """The row of a chat: its last question and answer, with the earlier turns.

    A question that ends the chat has no answer.

    Args:
        turns: of the chat.
        where: the row, for errors.
        key: the column's name.
        system: the text of a column of its own.

    Raises:
        RowError: the turns do not go user, assistant, user ..., or the last question is empty.
    """
    first = next((i for i, (role, _) in enumerate(turns) if role != "system"), len(turns))
    own = "\n\n".join(text for _, text in turns[:first] if text.strip()) or None
    if own and system and own != system:
        raise RowError(where, f"{key} and the column system differ; keep one")
    talk = list(turns[first:])
    roles = [role for role, _ in talk]
    if not roles or any(role != ("user", "assistant")[i % 2] for i, role in enumerate(roles)):
        shown = ", ".join(roles[:8]) + (" ..." if len(roles) > 8 else "")
        raise RowError(
            where,
            f"{key} must be system (where there is one), then user and assistant in turn, found "
            f"{shown or 'system alone'}; leave such rows out",
        )
    answer = talk.pop()[1] if roles[-1] == "assistant" else None
    prompt = talk.pop()[1]
    if not prompt.strip():
        raise RowError(where, "the prompt is empty")
    return Row(prompt=prompt, completion=answer, system=own or system, history=tuple(talk))
