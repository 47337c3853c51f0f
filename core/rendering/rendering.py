"""How prompts are rendered, as a record: one value that decides it for every command."""

import json
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..config import Config
from ..errors import LoratomyError
from ..files.jsonfiles import json_or_text
from ..registry import nearest
from .templates import TEMPLATES

CHAT = "chat"
"""The name of the rendering through the tokenizer's own chat template."""
MOST = 2**20
"""Longest template, in characters."""
SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")
"""The special tokens whose texts a template may use."""


class Rendering(Config):
    """Everything besides the tokenizer that decides how a question becomes tokens."""

    template: str = CHAT
    """``chat`` for the tokenizer's own, a published form's name, a Jinja chat template, or a plain
    text with ``{prompt}``."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Variables of the template besides the turns, e.g. ``enable_thinking``."""
    system: str | None = None
    """System text of rows that have none of their own; None: as the template does without one."""
    opening: Literal["auto", "generation", "conversation"] = "auto"
    """Where the answer begins: after the template's generation prompt, or where it begins in a
    rendered conversation; ``auto``: after the generation prompt where the template has one."""
    space: Literal["auto", "prompt", "answer", "none"] = "auto"
    """To which side the white space between prompt and answer belongs as tokens; ``auto``: to the
    prompt as far as the template gives it there, else to the answer."""
    begin: Literal["auto", "add", "none"] = "auto"
    """The begin of sequence: where the template (of plain forms: the tokenizer) puts one, one more,
    or none."""
    end: str = ""
    """What closes an answer; empty: what the template writes there, else the tokenizer's end of
    sequence."""
    ends: tuple[str, ...] = ()
    """Further tokens that end an answer in generation."""
    specials: dict[str, str] = Field(default_factory=dict)
    """Texts of special tokens, of `SPECIALS`, where they are other than the tokenizer's."""
    where: str = ""
    """Where a Jinja template was found, in words; empty where it was given."""
    day: date = date(2024, 7, 26)
    """The day that templates are given (Llama 3's own default): prompts do not change overnight."""

    def about(self) -> str:
        """In words, for a line."""
        names = {CHAT: "the base's chat template"}
        name = names.get(self.template, self.template)
        if self.template in TEMPLATES:
            name = f"the published form {name!r}"
        elif is_jinja(self.template):
            name = self.where or f"the given chat template ({len(self.template)} characters)"
        elif self.template != CHAT:
            name = f"plain prompts {pasteable(self.template)}"
        changes = [f"{key}={json.dumps(value)}" for key, value in self.arguments.items()]
        if self.system is not None:
            changes.append(f"the system text {self.system[:60]!r}" if self.system else "no system")
        words = {
            "opening": {"conversation": "the answer where it begins in a conversation"},
            "space": {
                "prompt": "the space before the answer as the prompt's last token",
                "answer": "the space before the answer as a part of it",
                "none": "no space before the answer",
            },
            "begin": {"add": "one more begin of sequence", "none": "no begin of sequence"},
        }
        for key, named in words.items():
            changes += [named[getattr(self, key)]] if getattr(self, key) in named else []
        changes += [f"answers closed by {self.end!r}"] if self.end else []
        return name + (f" with {', '.join(changes)}" if changes else "")

    def key(self) -> str:
        """A text that equal renderings share."""
        return self.model_dump_json()


def is_jinja(template: str) -> bool:
    """Whether a text is a chat template in Jinja."""
    return "{%" in template or "{{" in template


def pasteable(template: str) -> str:
    """A plain template as it can be typed in a shell: quoted, line ends as ``\\n``."""
    import shlex

    return shlex.quote(template.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t"))


def given_template(text: str) -> str:
    r"""The template that ``--template`` names: a name, a file, or a text (``\n`` is a line end).

    Raises:
        LoratomyError: neither; a file that cannot be read or is too long.
    """
    if text == CHAT or text in TEMPLATES:
        return text
    path = Path(text)
    if len(text) < 1000 and "{" not in text and path.is_file():
        if path.stat().st_size > 4 * MOST:
            raise LoratomyError(f"the template file {text} is over {4 * MOST} bytes long")
        try:
            found = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LoratomyError(f"cannot read the template file {text}: {error}") from error
        if not (is_jinja(found) or "{prompt}" in found):
            raise LoratomyError(
                f"the template file {text} is neither a Jinja chat template nor a text with "
                "{prompt}"
            )
        return found
    if is_jinja(text):
        return text
    if "{prompt}" in text:
        plain = text.replace("\\\\", "\0").replace("\\n", "\n").replace("\\t", "\t")
        return plain.replace("\0", "\\")
    raise LoratomyError(
        f"--template {text[:60]!r} is no published form ({nearest(text, [CHAT, *TEMPLATES])}), no "
        "file, no Jinja template, and does not contain {prompt}; write e.g. '{prompt}\\n'"
    )


def given_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """The arguments that ``--template-arg key=value`` give; values are JSON where they parse.

    Raises:
        LoratomyError: not ``key=value``, or a name that the rendering itself gives.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise LoratomyError(
                f"--template-arg {pair[:60]!r}: write key=value, e.g. enable_thinking=false"
            )
        if key in ("messages", "add_generation_prompt", "tools", "documents", "strftime_now"):
            raise LoratomyError(f"--template-arg {key}: loratomy gives this one itself")
        value = {"True": "true", "False": "false", "None": "null"}.get(value, value)
        found[key] = json_or_text(value, f"--template-arg {key[:40]}")
    return found


def rendering_from(value: Mapping[str, Any], where: str) -> Rendering:
    """The rendering that a JSON object records.

    Raises:
        LoratomyError: it is no rendering; with the key.
    """
    from pydantic import ValidationError

    try:
        return Rendering.model_validate(dict(value))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise LoratomyError(
            f"{where} is no record of a rendering: {key}: {first['msg']}"
        ) from error
