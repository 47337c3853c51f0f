"""A base's tokenizer: its settings checked, loaded, tried, and compared with the embeddings."""

from pathlib import Path
from typing import Any

from ..errors import LoratomyError
from ..files.jsonfiles import RECORD, read_json
from ..rendering.beside import read_beside

_TRIED = "What is 12 + 30, Ada?"
"""Some tokenizers that load fail at the first text."""


def check_tokenizer_config(folder: Path) -> None:
    """Raise where a base's tokenizer_config.json has settings that only fail when they are used.

    Raises:
        LoratomyError: names the setting and what to do.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return
    found = read_json(path, most=RECORD, error=LoratomyError)
    if not isinstance(found, dict):
        raise LoratomyError(f"{path} is not a JSON object; put back the base's own or remove it")
    length = found.get("model_max_length")
    number = isinstance(length, int | float) and not isinstance(length, bool)
    if length is not None and not (number and length > 0):
        raise LoratomyError(
            f"{path}: model_max_length is {str(length)[:40]!r}, and no number of tokens; put back "
            "the base's own file, or take the key out"
        )
    listed = found.get("chat_template")
    for i, item in enumerate(listed if isinstance(listed, list) else ()):
        texts = [item.get(key) for key in ("name", "template")] if isinstance(item, dict) else [0]
        if not all(isinstance(text, str) for text in texts):
            raise LoratomyError(
                f"{path}: chat_template is a list, and its entry {i} has no name and template; "
                'write {"name": "default", "template": ...}, or the template alone as a text'
            )


def load_tokenizer(where: str, **given: Any) -> Any:
    """The tokenizer of a folder or hub id, tried on a short text.

    Args:
        where: the folder or id.
        given: further arguments of `from_pretrained`.

    Raises:
        Exception: of every kind, from the loaders.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(where, **given)
    if not tokenizer.chat_template and Path(where).is_dir():  # in a file of its own
        tokenizer.chat_template = read_beside(Path(where)).template or None
    tokenizer(_TRIED)
    return tokenizer


def check_vocabulary(tokenizer: Any, rows: int, where: str) -> None:
    """Take note of tokens that have no row in the embeddings; raise where every prompt has one.

    Some bases' tokenizers have a padding token or placeholders for images that the model has not: a
    text that holds one is refused when it is rendered (`Renderer`), and padding takes another one.

    Args:
        tokenizer: as loaded; its ``beyond`` becomes the tokens by their numbers.
        rows: of the embeddings.
        where: the base, for the error.

    Raises:
        LoratomyError: names the token, what it is for and what to do.
    """
    beyond = {number: text for text, number in tokenizer.get_vocab().items() if number >= rows}
    for role in ("bos_token", "eos_token", "unk_token"):
        number = getattr(tokenizer, f"{role}_id")
        if number in beyond:
            raise LoratomyError(
                f"the base {where}: the {role} {beyond[number]!r} has the number {number}, and the "
                f"embeddings have {rows} rows: it would be none of them; name a token of the "
                "vocabulary there (tokenizer_config.json, special_tokens_map.json), or resize the "
                "embeddings"
            )
    if tokenizer.pad_token_id in beyond:
        tokenizer.pad_token = None
    tokenizer.beyond = beyond


def load_error(error: Exception) -> str:
    """The error of a loader in one line: its kind and message, without a hub's token."""
    from huggingface_hub import get_token

    message = " ".join(str(error).split())
    if token := get_token():
        message = message.replace(token, "***")
    return f"{type(error).__name__}: {message[:600]}" if message else type(error).__name__
