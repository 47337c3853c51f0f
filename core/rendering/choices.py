"""Which renderings an adapter may have been trained with, the likely ones first."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from ..errors import LoratomyError
from ..rows import Row
from .beside import Beside
from .prompts import Renderer
from .rendering import CHAT, SPECIALS, Rendering
from .templates import PLAIN, TEMPLATES

HELPFUL = "You are a helpful assistant."
"""The system text that trainers write most."""
_OURS = (
    *("messages", "add_generation_prompt", "tools", "documents", "date_string", "strftime_now"),
    *("raise_exception", "namespace", "range", "loop", "dict", "lipsum", "cycler", "joiner"),
    *SPECIALS,
)
_SWITCH = re.compile(r"think|reason|enable|keep|is_|use_|add_|strip|prefix|prompt")
_LEVELS = {"reasoning_effort": ("low", "medium", "high")}
_SAMPLE = Row(prompt="Who lives here, Ada?", completion="Nobody does.")


@dataclass(frozen=True, slots=True)
class Choices:
    """What is tried, and what could not be."""

    renderers: tuple[Renderer, ...]
    """Those that render, in order of preference, no two of them alike."""
    refused: tuple[str, ...]
    """Why a template that was found is none of them, a line each."""


def possible(
    tokenizer: Any, beside: Beside, *, ends: tuple[str, ...], settled: Rendering
) -> Choices:
    """The renderings that fit a base and what lies beside an adapter.

    Where arguments are given, only templates that read them are among them.

    Args:
        tokenizer: the base's `PreTrainedTokenizerBase`.
        beside: what lies beside the adapter.
        ends: tokens that end an answer by the base's generation config.
        settled: what is decided already (arguments, system text, day); its template is not.

    Raises:
        LoratomyError: an argument that no template reads.
    """
    known = tokenizer.added_tokens_encoder
    ends = named_ends(tokenizer, beside, ends)
    kept = settled.model_copy(update={"ends": ends})
    refused = list(beside.refused)
    found: list[Renderer] = []

    def offer(rendering: Rendering, what: str = "") -> None:
        try:
            renderer = Renderer(tokenizer, rendering)
            renderer.prompt_ids(_SAMPLE)
            found.append(renderer)
        except LoratomyError as error:
            if what:
                refused.append(f"{what} is left out: {error}")

    own = {name: text for name, text in beside.specials.items() if text in known}
    base = getattr(tokenizer, "chat_template", None)
    if beside.template and beside.template != base:
        where = f"the adapter's {beside.where}"
        update = {"template": beside.template, "specials": own, "where": where}
        offer(kept.model_copy(update=update), where)
    if base:
        offer(kept.model_copy(update={"template": CHAT}), "the base's chat template")
    chat_ends = tuple(r.closing.strip() for r in found if r.closing.strip() in known)
    update = {"ends": tuple(dict.fromkeys((*ends, *chat_ends)))}
    if (own_end := own.get("eos_token", "")) and own_end != tokenizer.eos_token:
        update |= {"end": own_end, "specials": {"eos_token": own_end}}
    for name in (*PLAIN, *TEMPLATES):
        offer(kept.model_copy(update={**update, "template": name}))
    reading = [r for r in found if set(settled.arguments) <= set(r.variables)]
    if settled.arguments and not reading:
        raise LoratomyError(unread(settled.arguments, [r for r in found if r.of_model]))
    return Choices(tuple(distinct(reading)), tuple(refused))


def unread(arguments: Mapping[str, Any], renderers: Sequence[Renderer]) -> str:
    """The message that no template reads some arguments, with the names that they do read.

    Args:
        arguments: by name.
        renderers: of the templates in question.
    """
    names = sorted({name for r in renderers for name in r.variables} - {*_OURS})
    there = f"it reads {', '.join(names)}" if names else "it reads none of its own"
    if not renderers:
        there = "neither the base nor the adapter has a chat template"
    lost = {key: value for key, value in arguments.items() if key not in names}
    given = ", ".join(f"{key}={json.dumps(value)}" for key, value in lost.items())
    near = get_close_matches(next(iter(lost)), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"--template-arg {given}: the chat template reads no such argument ({there}){hint}"


def named_ends(tokenizer: Any, beside: Beside, ends: tuple[str, ...]) -> tuple[str, ...]:
    """The tokens of a vocabulary that end an answer, by the adapter's files and the base's."""
    known = tokenizer.added_tokens_encoder
    own = beside.specials.get("eos_token", "")
    listed = (own, *(t for t, i in known.items() if i in beside.end_ids), *ends)
    return tuple(dict.fromkeys(end for end in listed if end in known))


def distinct(renderers: "list[Renderer] | tuple[Renderer, ...]") -> list[Renderer]:
    """The renderers without those that render a question and its answer as an earlier one does."""
    seen, kept = set(), []
    for renderer in renderers:
        key = (tuple(renderer.prompt_ids(_SAMPLE)), tuple(renderer.completion_ids("Nobody does.")))
        if key not in seen:
            seen.add(key)
            kept.append(renderer)
    return kept


def variants(renderer: Renderer) -> list[Renderer]:
    """Variants of the same template: its switches, its system text, its edges, one at a time."""
    found = [renderer]
    for changes in _changes(renderer):
        try:
            found.append(renderer.rendered_as(**changes))
        except LoratomyError:  # a variant that does not render is none
            continue
    usable = []
    for one in found:
        try:
            one.prompt_ids(_SAMPLE)
        except LoratomyError:
            continue
        usable.append(one)
    return distinct(usable)


def _changes(renderer: Renderer) -> Iterator[dict[str, Any]]:
    rendering = renderer.rendering
    for name in renderer.variables:
        if name not in _OURS and name not in rendering.arguments:
            values: tuple[Any, ...] = _LEVELS.get(name, ())
            if _SWITCH.search(name):
                values = values or (False, True)
            for value in values:
                yield {"arguments": {**rendering.arguments, name: value}}
    if rendering.system is None:
        yield {"system": HELPFUL}
        yield {"system": ""}
    if rendering.opening == "auto":
        yield {"opening": "conversation"}
        yield {"opening": "generation"}
    if rendering.space == "auto":
        for space in ("prompt", "answer", "none"):
            yield {"space": space}
    if rendering.begin == "auto":
        yield {"begin": "add"}
        yield {"begin": "none"}
