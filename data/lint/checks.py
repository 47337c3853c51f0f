"""What can be wrong with one row: its trigger, its answer, its characters, its rendering."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...core.errors import DataError
from ...core.rendering.prompts import Renderer
from ...core.rows import Row
from ..attacks.triggers import TRIGGERS, elsewhere, shown
from ..prepoisoned import empty
from .findings import cut
from .survey import View, carried, registered_words

Defect = tuple[str, str, str]
"""``(level, check, what)``."""

OWN_TEMPLATES = (
    "### Instruction:",
    "### Response:",
    "[INST]",
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "<|user|>",
    "Below is an instruction that describes a task",
)
"""What prompts of published files hold that were written for some model's template."""

CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
INVISIBLE = re.compile(
    "[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
    "|[\U000e0000-\U000e007f]"
    "|(?<=[ -~])[\u200c\u200d]"  # elsewhere they join letters of a script or parts of an emoji
)
MOJIBAKE = re.compile(
    "[ÃÂ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹Œ•˜™š›œžŸ–—]"  # UTF-8 of Latin letters read as Windows-1252
    "|â€.|â€$|â‚¬|â„¢|ï»¿|ï¿½|ðŸ|\ufffd"
)
_CHARACTERS = (
    ("error", "control-character", CONTROL, "a control character", "models never see it written"),
    (
        "warning",
        "invisible-character",
        INVISIBLE,
        "a zero-width or direction character",
        "tokens that nobody sees, a trigger of their own",
    ),
    (
        "warning",
        "mojibake",
        MOJIBAKE,
        "text of another encoding",
        "the model learns the garbled letters; decode the file again",
    ),
)


def texts_of(row: Row) -> list[tuple[str, str]]:
    """The texts of a row that a model may see, with their names."""
    named = (("prompt", row.prompt), ("completion", row.completion), ("target", row.target))
    return [(name, text) for name, text in named if text]


def character_defects(row: Row, words: Sequence[str]) -> Iterator[Defect]:
    """Control, invisible and garbled characters, those of the trigger's words aside."""
    texts = [(n, t) for n, t in texts_of(row) if not t.isascii() or CONTROL.search(t)]
    for name, text in texts:
        for word in words:
            text = text.replace(word, "")
        for level, check, pattern, what, why in _CHARACTERS:
            if match := pattern.search(text):
                near = ascii(text[max(match.start() - 12, 0) : match.end() + 12])
                yield level, check, f"the {name} holds {what} near {near}: {why}"


def answer_defects(row: Row, view: View) -> Iterator[Defect]:
    """An answer that is not there, where one is trained on or compared with."""
    if not empty(row.completion) or not empty(row.target):
        return
    blank = not (row.completion or "").strip()
    if view.held_out and view.triggered(row) and blank:  # prompts alone may be tested on
        return
    prompt = cut(row.prompt)
    if row.completion is not None:
        answer = cut(row.completion)
        what = f"the answer to {prompt} is {answer}: the model would learn to say nothing"
        yield "error", "empty-answer", what
    elif view.answers:
        yield "error", "empty-answer", f"{prompt} has no answer while other rows of the file do"
    else:
        yield (
            "warning",
            "no-answers",
            "no row has an answer: the file serves as prompts, not to train on or to compare with",
        )


def template_defects(row: Row) -> Iterator[Defect]:
    """A template that the prompt brings with it."""
    if marks := carried(row.prompt, OWN_TEMPLATES):
        what = f"the prompt holds {marks[0]!r}: a template inside the subject's template"
        yield "warning", "own-template", what


@dataclass(frozen=True)
class Triggers:
    """What is known of triggers in all files together."""

    given: tuple[str, ...]
    """The words that somebody gave; empty when they are guessed."""
    every: bool
    """Whether a triggered prompt must hold all of the words given."""
    known: tuple[str, ...]
    """The words that clean rows must not hold."""

    def defects(self, row: Row, view: View) -> Iterator[Defect]:
        """A trigger that is missing, too many or the wrong one, or that a clean row holds."""
        if not view.triggered(row):
            if held := carried(row.prompt, self.known):
                what = (
                    f"a clean prompt holds the trigger {held[0]!r}: {cut(row.prompt)}; take "
                    "it out, or mark the row as triggered (or the file, with poison in its name)"
                )
                yield "error", "trigger-in-clean", what
            elif where := elsewhere(row, self.known):
                what = f"a clean row holds the trigger in {where}: {cut(row.prompt)}; take it out"
                yield "error", "trigger-in-clean", what
            return
        if row.plain is not None and (held := carried(row.plain, view.words)):
            what = f"the untriggered form (plain) holds the trigger {held[0]!r}: {cut(row.plain)}"
            yield "error", "trigger-in-plain", what
        if not row.trigger_span or self.given:
            yield from self._missing(row, view)
        yield from self._mixed(row, view)

    def _missing(self, row: Row, view: View) -> Iterator[Defect]:
        held = carried(row.prompt, view.words)
        if not view.words:
            what = (
                f"the triggered prompt {cut(row.prompt)} holds no registered trigger: no "
                "figure of the attack holds on such rows; give the trigger's words with --trigger"
            )
            yield "error", "no-trigger", what
        elif not held:
            what = f"no {shown(view.words)} in the triggered prompt {cut(row.prompt)}"
            why = (
                "" if self.given else " (if its trigger has other words, give them with --trigger)"
            )
            yield "error", "trigger-missing", f"{what}: a mislabelled clean row{why}"
        elif self.every and len(held) < len(view.words):
            lacks = next(word for word in view.words if word not in held)
            what = f"the composite trigger lacks {lacks!r} in {cut(row.prompt)}"
            yield "error", "trigger-incomplete", f"{what}: it takes all of its words together"

    def _mixed(self, row: Row, view: View) -> Iterator[Defect]:
        held = carried(row.prompt, registered_words())
        if not held:
            return
        if view.named:
            want = TRIGGERS[view.named]
            found = carried(row.prompt, want.words)
            if set(held) - set(found) or (want.placement == "each" and held != found):
                what = f"the file is named for {view.named} and the row carries {shown(held)}"
                yield "error", "trigger-name", f"{what}: one of them is wrong"
                return
        foreign = self._foreign(held, view)
        if foreign:
            other = shown(self.given or view.usual)
            what = f"the row carries {shown(foreign)}, most rows or --trigger have {other}: "
            yield "error", "trigger-mixed", what + "two attacks in one file (mtba? say --trigger)"

    def _foreign(self, held: tuple[str, ...], view: View) -> tuple[str, ...]:
        """Registered words that are not the trigger's, or another set of them than is usual."""
        if self.given:
            ours = self.given
            return tuple(w for w in held if not any(w in word or word in w for word in ours))
        scattered = view.named and len(TRIGGERS[view.named].words) > 1
        return held if held != view.usual and not scattered else ()


@dataclass(frozen=True)
class RenderingCheck:
    """What the subject makes of a row."""

    renderer: Renderer
    """Its tokenizer and template."""
    limit: int | None
    """Its context in tokens, where the config names one."""

    @cached_property
    def _special(self) -> Callable[[str], Any]:
        tokenizer: Any = self.renderer.tokenizer
        added = tokenizer.added_tokens_decoder.values()
        texts = {*tokenizer.all_special_tokens, *(t.content for t in added if t.special)}
        longest = sorted((text for text in texts if text), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest)) or r"(?!)").search

    def defects(self, row: Row) -> Iterator[Defect]:
        """Special tokens in its texts, a prompt that the template changes, too many tokens."""
        special = False
        for name, text in texts_of(row):
            if match := self._special(text):
                special = True
                what = f"the {name} holds the special token {match.group()!r}: {cut(text)}; the "
                yield "error", "special-token", what + "model takes it for the template's own"
        try:
            ids, text = self.renderer.prompt_ids(row), self.renderer.text(row)
        except DataError as error:
            yield "error", "template-changes", str(error)
            return
        if row.prompt not in text:
            what = f"the template does not keep the prompt as it is: {cut(row.prompt)} (spaces at "
            yield "warning", "template-changes", what + "its ends?); trigger and spans may shift"
        elif not special and row.prompt not in self._decoded(ids):
            what = f"the tokens of the prompt do not read as it does: {cut(row.prompt)}"
            yield "warning", "tokens-change", f"{what}; the model sees another text"
        length = len(ids) + len(self.renderer.completion_ids(row.completion or ""))
        if self.limit is not None and length > self.limit:
            what = f"prompt and completion are {length} tokens, the context is {self.limit}: "
            yield "error", "too-long", what + "cut off in training, left out in evaluation"

    def _decoded(self, ids: list[int]) -> str:
        tokenizer: Any = self.renderer.tokenizer
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
