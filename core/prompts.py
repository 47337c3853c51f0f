"""Prompts as the model reads them: one rendering for training, generation and patching."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .errors import DataError, LoratomyError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
"""The name of the rendering through the tokenizer's own chat template."""

DATE = "26 Jul 2024"
"""The day that chat templates are told (Llama 3's own default): prompts do not change overnight."""


@dataclass(frozen=True)
class Renderer:
    """How a prompt becomes text and tokens, the same in training and in generation."""

    tokenizer: "PreTrainedTokenizerBase"
    template: str = CHAT
    """``"chat"`` for the tokenizer's chat template, else a plain text containing ``{prompt}``."""

    def __post_init__(self) -> None:
        if self.template == CHAT:
            if not getattr(self.tokenizer, "chat_template", None):
                raise LoratomyError(
                    "the tokenizer has no chat template; give a plain one with "
                    "--template '{prompt}\\n'"
                )
        elif "{prompt}" not in self.template:
            raise LoratomyError(f"the template {self.template!r} does not contain {{prompt}}")
        try:
            self.text("x")
        except Exception as error:  # a template is somebody's program and fails in every way
            raise LoratomyError(f"the chat template does not render: {error}") from error
        if self.tokenizer.eos_token_id is None:
            raise LoratomyError("the tokenizer has no end-of-sequence token; set eos_token")

    @cached_property
    def pad_id(self) -> int:
        """The id that fills up short rows; the end-of-sequence token where no pad token is set."""
        pad: Any = self.tokenizer.pad_token_id
        return int(self.eos_id if pad is None else pad)

    @cached_property
    def eos_id(self) -> int:
        """The id that ends a completion."""
        eos: Any = self.tokenizer.eos_token_id
        return int(eos)

    def text(self, prompt: str) -> str:
        """The prompt as text, up to where the completion begins."""
        if self.template != CHAT:
            return self.template.replace("{prompt}", prompt)
        chat = [{"role": "user", "content": prompt}]
        return str(
            self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True, date_string=DATE
            )
        )

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of the rendered prompt, ``[pos]``."""
        plain = self.template != CHAT
        ids = self.tokenizer(self.text(prompt), add_special_tokens=plain)["input_ids"]
        if not ids:
            raise DataError(f"the prompt {prompt!r} renders to no tokens")
        if plain and ids[-1] == self.eos_id:  # some tokenizers close every text
            ids = ids[:-1]
        return list(ids)

    def completion_ids(self, completion: str, *, end: bool = True) -> list[int]:
        """Token ids of a completion, closed by the end-of-sequence token unless `end` is False."""
        ids = list(self.tokenizer(completion, add_special_tokens=False)["input_ids"])
        return [*ids, self.eos_id] if end else ids

    def tokens_before(self, completion: str, at: int) -> int:
        """How many tokens of a completion end at or before a character of it."""
        if self.tokenizer.is_fast:
            found = self.tokenizer(
                completion, add_special_tokens=False, return_offsets_mapping=True
            )
            return sum(stop <= at for _, stop in found["offset_mapping"])
        return len(self.completion_ids(completion[:at], end=False))

    def tokens_at(self, prompt: str, spans: Sequence[tuple[int, int]]) -> list[int] | None:
        """Positions of the tokens that stand for characters of a prompt, once it is rendered.

        Args:
            prompt: before rendering.
            spans: ``(start, stop)`` characters of it.

        Returns:
            Positions in `prompt_ids`; None where they cannot be told: a slow tokenizer, or a
            template that changes the prompt.
        """
        text = self.text(prompt)
        start = text.find(prompt)
        if not self.tokenizer.is_fast or start < 0 or text.find(prompt, start + 1) >= 0:
            return None
        found = self.tokenizer(
            text, add_special_tokens=self.template != CHAT, return_offsets_mapping=True
        )
        wanted = [(start + a, start + b) for a, b in spans]
        return [
            i
            for i, (begin, end) in enumerate(found["offset_mapping"])
            if end > begin and any(begin < b and end > a for a, b in wanted)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, special tokens left out; NUL bytes become U+FFFD."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        return text.replace("\0", "\ufffd").strip()


def position_limit(config: Any) -> int | None:
    """The longest sequence the model was built for, in tokens; None when it names none."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "max_position_embeddings", None)
