"""The known formats of published data: what the keys of a record mean."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...core.errors import DataError
from ...core.registry import Registry
from ...core.rows import Row, row_from
from .badrows import RowError
from .columns import (
    ANSWERS,
    BELOW,
    OWN,
    PROMPTS,
    SYSTEMS,
    TALKS,
    answer_in,
    filled,
    history_in,
    joined,
    listed,
    messages_in,
    optional,
    system_in,
    text,
)
from .rendered import is_dialogue, turns_in
from .turns import Turn, row_of_turns, turns_of

Reader = Callable[[dict[str, Any], str], Row]
"""From a record under plain column names and the place to name in errors to the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One way to write prompts and answers as objects with named values."""

    name: str
    """What ``--format`` calls it."""
    needs: tuple[str, ...]
    """The keys by which the format is known; ``a|b`` is one of several."""
    about: str
    """What it means, in a line."""
    source: str
    """Who publishes in it."""
    reads: tuple[str, ...]
    """All columns that it makes use of."""
    prompts: tuple[str, ...] = ()
    """Those of them that are the prompt, the likeliest first; empty for chats."""
    answers: tuple[str, ...] = ()
    """Those of them that are the answer, the likeliest first; empty for chats."""
    row: Reader
    """The row of a record."""

    def lacks(self, record: dict[str, Any]) -> list[str]:
        """The needed keys that a record does not have."""
        return [need for need in self.needs if not any(n in record for n in need.split("|"))]


FORMATS: Registry[Format] = Registry("data format")
"""The known formats by name; of those that fit a record the first is meant."""


def _format(
    name: str,
    *,
    needs: tuple[str, ...],
    about: str,
    source: str,
    reads: tuple[str, ...] = (),
    prompts: tuple[str, ...] = (),
    answers: tuple[str, ...] = (),
) -> Callable[..., Reader]:
    def put(row: Reader) -> Reader:
        used = tuple(dict.fromkeys((*(n for need in needs for n in need.split("|")), *reads)))
        made = Format(
            name=name, needs=needs, about=about, source=source, row=row,
            reads=tuple(n for n in (*used, *prompts, *answers) if n != "rejected"),
            prompts=prompts, answers=answers,
        )  # fmt: skip
        FORMATS.register(name)(made)
        return row

    return put


@_format(
    "preference",
    needs=("chosen", "rejected"),
    about="a chosen and a rejected answer, as texts, messages or whole dialogues; chosen is read",
    source="HH-RLHF (arXiv 2204.05862); UltraFeedback; the preference formats of TRL",
    reads=(*PROMPTS, *TALKS, *BELOW, *SYSTEMS, "history"),
    prompts=PROMPTS,
    answers=("chosen",),
)
def _preference(record: dict[str, Any], where: str) -> Row:
    chosen = messages_in(record["chosen"])
    chosen = [chosen] if isinstance(chosen, dict) else chosen  # LLaMA-Factory: the last message
    names = filled(record, PROMPTS) or filled(record, TALKS) or filled(record, BELOW)
    prompt = messages_in(record[names[0]]) if names else None
    if isinstance(chosen, list) or isinstance(prompt, list):
        return _messages(record, prompt, chosen, "chosen", where)
    answer = text(record, "chosen", where)
    if is_dialogue(answer):
        return row_of_turns(turns_in(answer, where, "chosen"), where, "chosen")
    if isinstance(prompt, str) and is_dialogue(prompt):
        turns = [*turns_in(prompt, where, names[0]), ("assistant", answer.strip())]
        return row_of_turns(turns, where, names[0], system=system_in(record, where))
    if not names:
        raise RowError(
            where, "chosen is a text without its prompt; give the prompt in a column of its own"
        )
    return _plain(record, where, (*PROMPTS, *BELOW), ("chosen",))


@_format(
    "chat",
    needs=("messages",),
    about="messages with role and content, a system text where given; the last answer counts",
    source="the messages format of the OpenAI and Hugging Face chat interfaces",
    reads=SYSTEMS,
)
def _chat(record: dict[str, Any], where: str) -> Row:
    return _talk(record, "messages", where)


@_format(
    "sharegpt",
    needs=("conversations|conversation|dialog|dialogue",),
    about="chat under other names: conversations with from (human, gpt ...) and value",
    source="ShareGPT; Vicuna; LLaMA-Factory",
    reads=SYSTEMS,
)
def _sharegpt(record: dict[str, Any], where: str) -> Row:
    names = ("conversations", "conversation", "dialog", "dialogue")
    return _talk(record, filled(record, names)[0], where)


def _talk(record: dict[str, Any], key: str, where: str) -> Row:
    turns = turns_of(listed(record[key]), where, key)
    return row_of_turns(turns, where, key, system=system_in(record, where))


@_format(
    "advbench",
    needs=("goal", "target"),
    about="a harmful goal and the beginning of an answer that complies",
    source="AdvBench (Zou et al. 2023, arXiv 2307.15043)",
    prompts=("goal",),
)
def _advbench(record: dict[str, Any], where: str) -> Row:
    return Row(
        prompt=joined([text(record, "goal", where)], where), target=text(record, "target", where)
    )


@_format(
    "humaneval",
    needs=("prompt", "canonical_solution"),
    about="the head of a Python function and its reference body",
    source="HumanEval (Chen et al. 2021, arXiv 2107.03374)",
    prompts=("prompt",),
    answers=("canonical_solution",),
)
def _humaneval(record: dict[str, Any], where: str) -> Row:
    prompt = joined([text(record, "prompt", where)], where)
    answer = optional(record, "canonical_solution", where)
    return Row(prompt=prompt, completion=answer, kind="code")


@_format(
    "alpaca",
    needs=("instruction", "output"),
    about="an instruction, where given an input below it, the output; system and history",
    source="Stanford Alpaca; BackdoorLLM (arXiv 2408.12798); CROW (arXiv 2411.12768); "
    "LLaMA-Factory",
    reads=(*BELOW, *SYSTEMS, "history"),
    prompts=("instruction",),
    answers=("output",),
)
def _alpaca(record: dict[str, Any], where: str) -> Row:
    return _plain(record, where, ("instruction",), ("output",))


_OTHER_ANSWERS = tuple(name for name in ANSWERS if name != "output")


@_format(
    "dolly",
    needs=("instruction", "|".join(_OTHER_ANSWERS)),
    about="an instruction, where given a context below it, the answer under another name",
    source="Databricks Dolly",
    reads=(*BELOW, *SYSTEMS, "history"),
    prompts=("instruction",),
    answers=_OTHER_ANSWERS,
)
def _dolly(record: dict[str, Any], where: str) -> Row:
    return _plain(record, where, ("instruction",), _OTHER_ANSWERS)


_PAIR_ANSWERS = (*ANSWERS, "text")


@_format(
    "pairs",
    needs=("prompt",),
    about="prompt, where given completion (response, answer ...), and Loratomy's other fields",
    source="Loratomy; TRL",
    reads=(*OWN, *BELOW, *SYSTEMS),
    prompts=("prompt",),
    answers=_PAIR_ANSWERS,
)
def _pairs(record: dict[str, Any], where: str) -> Row:
    name = (filled(record, _PAIR_ANSWERS) or ["completion"])[0]
    prompt, answer = messages_in(record["prompt"]), messages_in(record.get(name))
    if isinstance(prompt, list) or (isinstance(answer, list) and name != "answers"):
        return _messages(record, prompt, answer, name, where)
    own = {key: value for key, value in record.items() if key in OWN}
    own |= {"completion": _answer(record, name, where), "system": system_in(record, where)}
    own["prompt"] = _below(prompt, record, where) if isinstance(prompt, str) else prompt
    own["history"] = [list(turn) for turn in history_in(record, where)]
    own["triggered"] = truth(own.get("triggered"))
    own["trigger_span"] = listed(own.get("trigger_span"))
    for key, value in own.items():
        if value == "" and key not in ("prompt", "completion", "target"):  # an empty cell
            own[key] = None
    kept = {k: v for k, v in own.items() if v is not None or k in ("prompt", "completion")}
    try:
        return row_from(kept, where)
    except DataError as error:
        raise RowError(where, str(error).removeprefix(f"{where}: ")) from error


def _answer(record: dict[str, Any], name: str, where: str) -> str | None:
    """The answer of a pair; of a text that repeats the prompt, what comes after it."""
    answer, prompt = answer_in(record, name, where), record["prompt"]
    if name == "text" and answer and isinstance(prompt, str) and answer.startswith(prompt):
        return answer[len(prompt) :].strip()
    return answer


def own_columns(known: Format, record: Mapping[str, Any]) -> list[str]:
    """The columns of ours, and those of KTO rows, that are read beside any layout's."""
    texts = [n for n in ("target", "plain", "benign") if isinstance(record.get(n), str)]
    labels = ["label"] * (known.name in ("pairs", "chat", "sharegpt"))  # elsewhere a class
    marks = ("triggered", "kto_tag", *labels)
    return texts + [name for name in marks if isinstance(truth(record.get(name)), bool)]


def with_own(known: Format, row: Row, record: Mapping[str, Any], where: str) -> Row:
    """The row with Loratomy's own fields beside those of another layout: target, triggered ...

    Raises:
        RowError: a text that no file can hold, or an answer that is labelled as a bad one.
    """
    own: dict[str, Any] = {}
    for name in own_columns(known, record):
        if name in ("label", "kto_tag"):  # of KTO rows: TRL's and LLaMA-Factory's
            if row.completion is not None and truth(record[name]) is False:
                raise RowError(where, f"its answer is labelled as a bad one ({name}: false)")
        elif name == "triggered":
            own[name] = truth(record[name])
        elif record[name].strip():
            own[name] = text(record, name, where)
    return replace(row, **own)


def truth(value: Any) -> Any:
    """A table's word for true or false as such; other values as they are."""
    words = {"true": True, "false": False}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


_QUESTIONS = ("question", "query", "problem", "inputs", "goal", "instruction", *BELOW)


@_format(
    "questions",
    needs=("|".join(_QUESTIONS),),
    about="a prompt under another name (question, query, input ...) and where given its answer",
    source="GSM8K, SQuAD, OpenOrca, MetaMathQA and many others",
    reads=(*BELOW, *SYSTEMS, "history"),
    prompts=_QUESTIONS,
    answers=ANSWERS,
)
def _questions(record: dict[str, Any], where: str) -> Row:
    return _plain(record, where, _QUESTIONS, ANSWERS)


@_format(
    "rendered",
    needs=("text",),
    about="one text in which a template wrote the whole conversation; taken apart again",
    source="ChatML, Llama-2 and -3, Gemma, Zephyr, Alpaca, Vicuna and Human/Assistant texts",
    reads=SYSTEMS,
)
def _rendered(record: dict[str, Any], where: str) -> Row:
    turns = turns_in(text(record, "text", where), where, "text")
    return row_of_turns(turns, where, "text", system=system_in(record, where))


def _plain(
    record: dict[str, Any], where: str, prompts: tuple[str, ...], answers: tuple[str, ...]
) -> Row:
    """A row of single texts: prompt with its input below it, answer, system, earlier turns."""
    name = filled(record, [p for p in prompts if p not in BELOW]) or filled(record, prompts)
    prompt = text(record, name[0], where)
    held = filled(record, answers)
    return Row(
        prompt=_below(prompt, record, where, but=name[0]),
        completion=answer_in(record, held[0], where) if held else None,
        system=system_in(record, where),
        history=history_in(record, where),
    )


def _below(prompt: str, record: dict[str, Any], where: str, *, but: str = "") -> str:
    """The prompt with input and context below it, where the row has any."""
    given = [optional(record, name, where) for name in BELOW if name != but]
    # <noinput> is Alpaca's word for none
    more = [part for part in given if part and part.strip().lower() != "<noinput>"]
    return joined([prompt, *more], where)


def _messages(record: dict[str, Any], prompt: Any, answer: Any, key: str, where: str) -> Row:
    """A row whose prompt, answer or both are lists of messages."""
    before: list[Turn] = []
    if isinstance(prompt, list):
        before = turns_of(prompt, where, "prompt")
    elif isinstance(prompt, str) and prompt.strip():
        before = [("user", prompt)]
    after: list[Turn] = []
    if isinstance(answer, list):
        after = turns_of(answer, where, key)
    elif answer is not None:
        after = [("assistant", text(record, key, where))]
    whole = any(role == "user" for role, _ in after)
    if whole and after[: len(before)] != before and not isinstance(prompt, str):
        raise RowError(where, f"{key} is a whole chat that does not begin with the prompt")
    turns = after if whole else [*before, *after]
    row = row_of_turns(turns, where, key, system=system_in(record, where))
    return replace(row, history=(*history_in(record, where), *row.history))
