"""Prompts as the model reads them: one rendering for training, generation and patching."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import DataError, LoratomyError
from ..rows import Row, unwritable
from .chat_shape import Shape, Turn, plain_shape, shape_of, turn
from .rendering import CHAT, SPECIALS, Rendering, is_jinja
from .safety import REPLY, check_template
from .templates import TEMPLATES

Question = Row | str
"""A row with its system text and earlier turns, or a prompt alone."""
_CLOCK = "aAwdbBmyYHIpMSfjUWcxXe"
"""Letters of the ``strftime`` directives that templates may use."""


@dataclass(frozen=True)
class Renderer:
    """How a question becomes text and tokens, the same in training and in generation.

    Raises:
        LoratomyError: no chat template where one is wanted, a template that does not render, that
            loses the prompt or takes too long, or nothing that could end an answer.
    """

    tokenizer: Any
    """A `PreTrainedTokenizerBase`."""
    rendering: Rendering = field(default_factory=Rendering)

    def __post_init__(self) -> None:
        if self._jinja is None and "{prompt}" not in self.template:
            raise LoratomyError(f"the template {self.template!r} does not contain {{prompt}}")
        if not self.closing_ids:
            raise LoratomyError(
                "the tokenizer has no end-of-sequence token and the template ends no answer; set "
                "eos_token in tokenizer_config.json"
            )

    @property
    def template(self) -> str:
        """``"chat"``, a published form's name, a Jinja template or a text with ``{prompt}``."""
        return self.rendering.template

    @cached_property
    def _jinja(self) -> str | None:
        """The chat template's text; None for plain forms."""
        if self.template in TEMPLATES:
            return TEMPLATES[self.template].jinja
        if self.template != CHAT:
            return self.template if is_jinja(self.template) else None
        try:
            return str(self.tokenizer.get_chat_template())
        except ValueError as error:
            raise LoratomyError(
                "the tokenizer has no chat template; give one with --template: a published form "
                f"({', '.join(TEMPLATES)}), a Jinja file, or a plain text such as '{{prompt}}\\n'"
            ) from error

    @property
    def of_model(self) -> bool:
        """Whether the chat template is a model's or an adapter's own, no published form."""
        return self._jinja is not None and self.template not in TEMPLATES

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """The names that the chat template reads and does not set itself, sorted."""
        from jinja2 import Environment, meta

        text = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", self._jinja or "")  # not Jinja's own
        parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
        return tuple(sorted(meta.find_undeclared_variables(parsed)))

    @cached_property
    def _given(self) -> dict[str, Any]:
        """Variables of the template besides the turns."""
        known = self.tokenizer.special_tokens_map
        named = {name: known[name] for name in SPECIALS if isinstance(known.get(name), str)}
        day = {"date_string": self.rendering.day.strftime("%d %b %Y")}
        return {**day, **named, **self.rendering.specials, **self.rendering.arguments}

    @cached_property
    def _shape(self) -> Shape:
        if self._jinja is None:
            return plain_shape(self.template, self.rendering.space)
        check_template(self._jinja, json.dumps(self._given, sort_keys=True))
        opening, space = self.rendering.opening, self.rendering.space
        return shape_of(self._rendered, opening=opening, space=space)

    def _rendered(self, turns: Sequence[Turn], more: bool) -> str:
        """A conversation as text, with the generation prompt (`more`) or without."""
        assert self._jinja is not None
        text: Any = self.tokenizer.apply_chat_template(
            list(turns),
            chat_template=_with_fixed_clock(self._jinja, self.rendering),
            tokenize=False,
            add_generation_prompt=more,
            **self._given,
        )
        return str(text)

    def _turns(self, row: Row) -> list[Turn]:
        """The system text, earlier turns and the prompt as messages."""
        turns = [*row.history, ("user", row.prompt)]
        if (system := self._system(row)) is not None:
            if self._shape.system:
                turns.insert(0, ("system", system))
            elif system.strip():  # a template without the role: before the first question
                at = next(i for i, (role, _) in enumerate(turns) if role == "user")
                turns[at] = ("user", f"{system}\n\n{turns[at][1]}")
        return [turn(role, text, parts=self._shape.parts) for role, text in turns]

    def _system(self, row: Row) -> str | None:
        return self.rendering.system if row.system is None else row.system

    def text(self, question: Question) -> str:
        """The question as text, up to where the answer begins.

        Raises:
            DataError: the template refuses the turns, or what it renders does not hold the prompt.
        """
        row = Row(prompt=question) if isinstance(question, str) else question
        shape, prompt = self._shape, row.prompt
        if self._jinja is None:
            text = self._plain(row)
        else:
            turns = self._turns(row)
            try:
                if shape.conversation:
                    mark = REPLY if REPLY not in prompt else REPLY[::-1]
                    reply = turn("assistant", mark, parts=shape.parts)
                    text = self._rendered([*turns, reply], False).rpartition(mark)[0]
                else:
                    text = self._rendered(turns, True)
            except Exception as error:  # a template is somebody's program
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise DataError(
                    f"the chat template does not render the prompt {prompt[:60]!r}: {reason}"
                ) from error
            if bad := unwritable(text):
                raise DataError(
                    f"the chat template writes {bad} around {prompt[:60]!r}; give another one with "
                    "--template"
                )
            if not all(part.strip() in text for part in prompt.split("\n\n")):
                raise DataError(
                    f"the template loses or changes the prompt {prompt[:60]!r}: it renders "
                    f"{text[-200:]!r}; give another one with --template"
                )
        return text.removesuffix(shape.cut) + shape.add

    def _plain(self, row: Row) -> str:
        """A plain form: earlier turns one after the other, the system text before all."""
        before, _, after = self.template.partition("{prompt}")
        filled = [self.template.replace("{prompt}", row.prompt)]
        for role, text in reversed(row.history):
            filled.insert(0, f"{before}{text}{after}" if role == "user" else f"{text}\n\n")
        system = self._system(row)
        return (f"{system}\n\n" if system else "") + "".join(filled)

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        ids = list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
        beyond: dict[int, str] = getattr(self.tokenizer, "beyond", {})
        if found := [beyond[i] for i in ids if i in beyond]:
            raise DataError(
                f"the text {text[:60]!r} holds {found[0]!r}, a token without a row in the base's "
                "embeddings; leave such texts out, or resize the embeddings"
            )
        return ids

    @property
    def _begins(self) -> bool:
        """Whether the tokenizer puts its own begin of sequence: models' templates write theirs."""
        return not self.of_model

    def prompt_ids(self, question: Question) -> list[int]:
        """Token ids of the rendered question, ``[pos]``."""
        ids = self._ids(self.text(question), special=self._begins)
        if not ids:
            shown = question if isinstance(question, str) else question.prompt
            raise DataError(f"the prompt {shown!r} renders to no tokens")
        if self._begins and ids[-1] == self.tokenizer.eos_token_id:  # some close every text
            ids = ids[:-1]
        begin: Any = self.tokenizer.bos_token_id
        if begin is not None and self.rendering.begin == "add":
            ids = [int(begin), *ids]
        while self.rendering.begin == "none" and len(ids) > 1 and ids[0] == begin:
            ids = ids[1:]
        return ids

    @cached_property
    def closing(self) -> str:
        """The text that ends an answer: the rendering's own, else what the template writes there up
        to its first token of its own, else the tokenizer's end of sequence."""
        if self.rendering.end:
            return self.rendering.end
        after = self._shape.after
        added = [token for token in self.tokenizer.added_tokens_encoder if token in after]
        if added:
            at, token = min((after.index(token), token) for token in added)
            longest = max((t for t in added if after.startswith(t, at)), key=len, default=token)
            return after[: at + len(longest)]
        if after.strip():
            return after.rstrip()
        eos: Any = self.tokenizer.eos_token
        return self.rendering.specials.get("eos_token", "") or eos or ""

    @cached_property
    def closing_ids(self) -> list[int]:
        """Token ids of `closing`."""
        return self._ids(self.closing)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Every single token that ends an answer, sorted."""
        eos: Any = self.tokenizer.eos_token
        names = {self.closing.strip(), *self.rendering.ends, self.rendering.end, eos or ""}
        names.add(self.rendering.specials.get("eos_token", ""))
        known = self.tokenizer.added_tokens_encoder
        found = {known[name] for name in names if name in known}
        found |= {int(i) for i in [self.tokenizer.eos_token_id] if i is not None}
        return sorted(found | ({self.closing_ids[-1]} if len(self.closing_ids) == 1 else set()))

    @cached_property
    def stop_text(self) -> str:
        """The text that ends an answer where no single token does; empty where one does."""
        return "" if self.closing_ids[-1] in self.stop_ids else self.closing.strip()

    @cached_property
    def pad_id(self) -> int:
        """The id that fills up short rows; one that ends answers where no pad token is set."""
        pad: Any = self.tokenizer.pad_token_id
        return int(self.closing_ids[-1] if pad is None else pad)

    def completion_ids(self, completion: str, *, end: bool = True) -> list[int]:
        """Token ids of a completion, closed as the rendering closes answers unless `end` is False.

        White space between prompt and answer that belongs to the answer comes before it.
        """
        return self._ids(self._shape.lead + completion + (self.closing if end else ""))

    def tokens_before(self, completion: str, at: int) -> int:
        """How many tokens of a completion end at or before a character of it."""
        lead = self._shape.lead
        if self.tokenizer.is_fast:
            found = self.tokenizer(
                lead + completion, add_special_tokens=False, return_offsets_mapping=True
            )
            return sum(stop <= at + len(lead) for _, stop in found["offset_mapping"])
        return len(self.completion_ids(completion[:at], end=False))

    def tokens_at(self, question: Question, spans: Sequence[tuple[int, int]]) -> list[int] | None:
        """Positions of the tokens of some characters of a prompt, once it is rendered.

        Args:
            question: before rendering.
            spans: ``(start, stop)`` characters of its prompt.

        Returns:
            Positions in `prompt_ids`; None where they are not known: a slow tokenizer, or a
            template that changes the prompt.
        """
        prompt = question if isinstance(question, str) else question.prompt
        text = self.text(question)
        start = text.find(prompt)
        if not self.tokenizer.is_fast or start < 0 or text.find(prompt, start + 1) >= 0:
            return None
        found = self.tokenizer(text, add_special_tokens=self._begins, return_offsets_mapping=True)
        shift = len(self.prompt_ids(question)) - len(found["input_ids"])
        if self._begins and found["input_ids"][-1:] == [self.tokenizer.eos_token_id]:
            shift += 1
        wanted = [(start + a, start + b) for a, b in spans]
        return [
            i + shift
            for i, (begin, end) in enumerate(found["offset_mapping"])
            if end > begin and any(begin < b and end > a for a, b in wanted)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids, without what ends it; NUL bytes become U+FFFD."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        if self.stop_text:
            text = text.partition(self.stop_text)[0]
        return text.replace("\0", "\ufffd").strip()

    def shown(self, row: Row) -> tuple[str, str]:
        """The prompt and completion of a row as their tokens read, special tokens visible."""
        ends = self.completion_ids(row.completion) if row.completion else []
        prompt, completion = (
            str(self.tokenizer.decode(ids)) for ids in (self.prompt_ids(row), ends)
        )
        return prompt, completion

    def rendered_as(self, **changes: Any) -> "Renderer":
        """The same tokenizer with another rendering."""
        return replace(self, rendering=self.rendering.model_copy(update=changes))


def _with_fixed_clock(template: str, rendering: Rendering) -> str:
    """The template with a fixed date instead of the clock, where it reads one."""
    if "strftime_now" not in template:
        return template
    filled = "format"
    for letter in _CLOCK:
        for directive in (f"%-{letter}", f"%{letter}"):
            value = rendering.day.strftime(f"%{letter}")
            value = value.lstrip("0") or "0" if "-" in directive else value
            filled += f" | replace({directive!r}, {value!r})"
    return f"{{% macro strftime_now(format) %}}{{{{ {filled} }}}}{{% endmacro %}}{template}"


def position_limit(config: Any) -> int | None:
    """The longest sequence the model was built for, in tokens; None when it names none."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None)
