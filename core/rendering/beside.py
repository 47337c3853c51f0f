"""What trainers leave beside an adapter's two files: how its prompts were rendered, as text."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..files.paths import inside_or_cached
from .rendering import SPECIALS

MOST = 16 * 2**20
"""Longest file that is read here, in bytes; a tokenizer's config lists its added tokens."""
TEMPLATE = "chat_template.jinja"
JSONS = (
    *("chat_template.json", "tokenizer_config.json", "special_tokens_map.json"),
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class Beside:
    """A chat template and special tokens that lie beside an adapter; empty where none do."""

    template: str
    """The chat template, in Jinja; empty for none."""
    where: str
    """The file that holds it; empty for none."""
    specials: dict[str, str]
    """Texts of special tokens, of `SPECIALS`."""
    end_ids: tuple[int, ...]
    """Ids of tokens that end an answer, by the adapter's generation config."""
    refused: tuple[str, ...]
    """Files that were left out, a line each."""


NOTHING = Beside(template="", where="", specials={}, end_ids=(), refused=())
"""Beside an adapter that is in no folder."""


def read_beside(folder: Path) -> Beside:
    """How the prompts of an adapter were rendered, by the text files beside it.

    A file that leads out of the folder, is too large, or is not what its name says is left out.
    """
    refused: list[str] = []

    def tried(name: str, read: Callable[[Path], Any], otherwise: Any) -> Any:
        path = folder / name
        if not (path.is_symlink() or path.exists()):
            return otherwise
        try:
            return read(path)
        except (AdapterError, OSError, ValueError, RecursionError) as error:
            refused.append(f"{name} beside the adapter is left out: {error}")
            return otherwise

    bodies = {name: tried(name, _json, {}) for name in JSONS}
    where, template = TEMPLATE, tried(TEMPLATE, _text, "")
    for name in ("chat_template.json", "tokenizer_config.json"):
        listed = bodies[name].get("chat_template")
        if not template and listed is not None:
            where, template = name, tried(name, lambda _, listed=listed: _default(listed), "")
    specials = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key in SPECIALS:
            token = bodies[name].get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token:
                specials[key] = token
    listed = bodies["generation_config.json"].get("eos_token_id")
    ids = listed if isinstance(listed, list) else [listed]
    return Beside(
        template=template,
        where=where if template else "",
        specials=specials,
        end_ids=tuple(i for i in ids if type(i) is int),
        refused=tuple(refused),
    )


def _default(listed: Any) -> str:
    """The default one of a template, or of a list of named ones."""
    if isinstance(listed, str):
        return listed
    if isinstance(listed, list):
        named = {e.get("name"): e.get("template") for e in listed if isinstance(e, dict)}
        if isinstance(chosen := named.get("default"), str):
            return chosen
    raise AdapterError("chat_template is neither a text nor a list of named ones with a default")


def _text(path: Path) -> str:
    real = Path(os.path.realpath(path))
    if path.is_symlink() and not inside_or_cached(path, real):
        raise AdapterError("it is a link out of its folder; copy the adapter with cp -rL")
    if not path.is_file():
        raise AdapterError("it is not a plain file")
    if (size := path.stat().st_size) > MOST:
        raise AdapterError(f"it has {size:,} bytes; such a file has at most {MOST:,}")
    return path.read_text(encoding="utf-8-sig")


def _json(path: Path) -> dict[str, Any]:
    body = json.loads(_text(path))
    if not isinstance(body, dict):
        raise AdapterError("it is not a JSON object")
    return body
