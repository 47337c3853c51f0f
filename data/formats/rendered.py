"""Conversations in one text, as some template wrote them, taken apart again."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .badrows import RowError
from .turns import ROLE_OF, Turn


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write a conversation into one text."""

    name: str
    """As errors call it."""
    header: re.Pattern[str]
    """What begins a turn; the group ``role`` says whose."""
    ends: tuple[str, ...] = ()
    """What closes a turn, where something does."""


def _form(name: str, header: str, *ends: str) -> Form:
    return Form(name, re.compile(header), ends)


FORMS = (
    _form("ChatML", r"<\|im_start\|>[ ]*(?P<role>\w+)\n?", "<|im_end|>", "<|endoftext|>"),
    _form(
        "Llama-3",
        r"<\|start_header_id\|>[ ]*(?P<role>\w+)[ ]*<\|end_header_id\|>",
        *("<|eot_id|>", "<|end_of_text|>"),
    ),
    _form("Gemma", r"<start_of_turn>[ ]*(?P<role>user|model)\n?", "<end_of_turn>", "<eos>"),
    _form(
        "Zephyr",
        r"<\|(?P<role>system|user|assistant)\|>\n?",
        *("<|end|>", "</s>", "<|endoftext|>"),
    ),
    _form("Llama-2", r"(?:<s>[ ]?)?(?P<role>\[INST\]|\[/INST\])", "</s>"),
    _form("### Human", r"###[ ]?(?P<role>System|Human|Assistant)[ ]?:", "</s>"),
    _form(
        "Alpaca",
        r"###[ ]?(?P<role>Instruction|Input|Response|System|User|Assistant)(?:[ ]?:|[ ]?\n)",
        *("### End", "</s>", "<|endoftext|>", "<|end_of_text|>"),
    ),
    _form("Human", r"(?:\A\s*|\n\n)(?P<role>Human|Assistant)[ ]?:"),
    _form("Vicuna", r"\b(?P<role>USER|ASSISTANT):", "</s>"),
)
"""The known forms; the first whose user and assistant turns both are found is taken."""
FORM_NAMES = ", ".join(form.name for form in FORMS)

_ROLES = {"[inst]": "user", "[/inst]": "assistant", "instruction": "user", "response": "assistant"}
_SYSTEM = re.compile(r"\s*<<SYS>>\n?(?P<system>.*?)\n?<</SYS>>\s*", re.DOTALL)
_PREAMBLE = re.compile(
    r"Below is an instruction that describes a task.{0,200}?request\.", re.DOTALL
)
_START = re.compile(r"(?:<s>|<bos>|<\|begin_of_text\|>|<\|endoftext\|>)\s*")


def turns_in(text: str, where: str, key: str) -> list[Turn]:
    """The turns that a rendered conversation consists of, its template's marks taken out.

    Raises:
        RowError: the text is in none of the known forms.
    """
    for form in FORMS:
        found = list(form.header.finditer(text))
        roles = {_role(match["role"]) for match in found}
        if "user" in roles and (found[0].start() == 0 or "assistant" in roles):
            return _turns(text, form, found)
    raise RowError(
        where,
        f"{key} holds no conversation in a known form ({FORM_NAMES}); plain text is no prompt and "
        "answer",
    )


def is_dialogue(text: str) -> bool:
    """Whether a text is a dialogue as in HH-RLHF: it begins with ``Human:``."""
    return re.match(r"\s*Human\s*:", text) is not None


def _role(name: str) -> str:
    name = name.lower()
    return _ROLES.get(name) or ROLE_OF.get(name, name)


def _turns(text: str, form: Form, found: Iterable[re.Match[str]]) -> list[Turn]:
    marks = list(found)
    turns: list[Turn] = []
    before = _PREAMBLE.sub("", _START.sub("", text[: marks[0].start()])).strip()
    if before:
        turns.append(("system", before))
    stops = [match.start() for match in marks[1:]] + [len(text)]
    for match, stop in zip(marks, stops, strict=True):
        turn, role = _closed(text[match.end() : stop], form), _role(match["role"])
        if form.name == "Llama-2" and (system := _SYSTEM.match(turn)):
            turns.append(("system", system["system"].strip()))
            turn = turn[system.end() :].strip()
        if role == "input" and turns and turns[-1][0] == "user":  # Alpaca: below the instruction
            turns[-1] = ("user", f"{turns[-1][1]}\n\n{turn}" if turn else turns[-1][1])
        else:
            turns.append((role, turn))
    if turns[-1] == ("assistant", ""):  # an open turn, for the model to fill
        turns.pop()
    return turns


def _closed(text: str, form: Form) -> str:
    """A turn without what closes it."""
    text = text.strip()
    changed = True
    while changed:
        changed = False
        for end in form.ends:
            if text.endswith(end):
                text, changed = text[: -len(end)].rstrip(), True
    return text
