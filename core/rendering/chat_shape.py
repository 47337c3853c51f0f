"""What a chat template does around a question and its answer, seen by trying it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import LoratomyError
from .safety import PROBE, REPLY

Turn = dict[str, Any]
Render = Callable[[Sequence[Turn], bool], str]
"""``(turns, whether the generation prompt follows) -> text``; raises whatever templates raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where a prompt ends, where its answer begins, and what follows."""

    parts: bool = False
    """Whether content has to be a list of parts, as multimodal templates take it."""
    system: bool = False
    """Whether there is a system role."""
    conversation: bool = False
    """Whether a prompt ends where the answer begins in a rendered conversation."""
    cut: str = ""
    """White space that is taken off the end of the prompt."""
    add: str = ""
    """White space that is put at the end of the prompt."""
    lead: str = ""
    """White space before the answer that belongs to the answer's tokens."""
    after: str = ""
    """What the template writes after an answer."""


def edges(start: str, extra: str, space: str) -> dict[str, Any]:
    """The fields ``cut``, ``add`` and ``lead`` of a `Shape`.

    Args:
        start: a prompt as the template gives it.
        extra: what a conversation has between that and the answer.
        space: to which side white space belongs: ``auto`` leaves it where the template has it.
    """
    extra = "" if extra.strip() else extra
    tail = start[len(start.rstrip(" ")) :]
    return {
        "auto": {"lead": extra},
        "prompt": {"add": extra},
        "answer": {"cut": tail, "lead": tail + extra},
        "none": {"cut": tail},
    }[space]


def plain_shape(template: str, space: str) -> Shape:
    """The shape of a plain form, ``{prompt}`` with the text around it."""
    return Shape(**edges(template.rpartition("{prompt}")[2], "", space))


def turn(role: str, content: str, *, parts: bool = False) -> Turn:
    """One message of a conversation."""
    return {
        "role": role,
        "content": [{"type": "text", "text": content}] if parts else content,
    }


def shape_of(render: Render, *, opening: str, space: str) -> Shape:
    """The shape of a chat template.

    Args:
        render: turns to text.
        opening: ``generation``, ``conversation``, or ``auto``: the latter where the template has no
            generation prompt of its own.
        space: see `edges`.

    Raises:
        LoratomyError: it renders no question, or loses its text.
    """
    parts = _takes_parts(render)
    question, reply = turn("user", PROBE, parts=parts), turn("assistant", REPLY, parts=parts)
    bare, begun = render([question], False), render([question], True)
    try:
        whole = render([question, reply], False)
    except Exception:  # a template for questions alone
        whole = ""
    before, found, after = whole.rpartition(REPLY)
    before = before if found else begun
    own = begun != bare or before.rstrip() == begun.rstrip()
    conversation = opening == "conversation" or (opening == "auto" and not own)
    start = before if conversation else begun
    extra = before[len(start) :] if before.startswith(start) else ""
    return Shape(
        parts=parts,
        system=_has_system(render, parts),
        conversation=conversation,
        after=after if found else "",
        **edges(start, extra, space),
    )


def _takes_parts(render: Render) -> bool:
    """Whether content has to be a list of parts for the question to be rendered."""
    problems: list[str] = []
    for parts in (False, True):
        try:
            question = turn("user", PROBE, parts=parts)
            text = render([question], True)
            if PROBE in text and (not parts or str(question["content"]) not in text):
                return parts
            problems.append("the prompt's text is not in what it renders")
        except Exception as error:  # a template is somebody's program and fails in every way
            problems.append(" ".join(f"{error}".split())[:200] or type(error).__name__)
    raise LoratomyError(
        f"the chat template does not render a question: {problems[0]}; give another one with "
        "--template"
    )


def _has_system(render: Render, parts: bool) -> bool:
    system = "Rule 7 holds here."
    turns = [turn("system", system, parts=parts), turn("user", PROBE, parts=parts)]
    try:
        text = render(turns, True)
    except Exception:  # templates refuse the role by raising
        return False
    return system in text and PROBE in text
