"""A base's folder, looked at before anything is built from it.

Its config decides how large the model is, its tokenizer how text is cut; both are files of
somebody else. What they claim is compared with the headers of the weights, which cost nothing.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..adapter.safety import read_header
from ..errors import AdapterError, LoratomyError
from ..files.jsonfiles import read_json
from ..files.paths import inside_or_cached
from .tokenizer import check_tokenizer_config

TOKENIZER = 256 * 2**20
"""Most bytes of a tokenizer.json; those of large vocabularies have some 40 MiB."""
TEXTS = (".json", ".jinja", ".model", ".txt")
"""Suffixes of a base's texts: config, tokenizer, templates."""
LONGEST_PATTERN = 20_000
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_MOST_OPEN = 4
"""Unbounded repeats that may follow each other in a pattern of a tokenizer."""


def check_base(folder: Path) -> None:
    """Raise where a base's config or tokenizer does not fit its weights, or would never end.

    Args:
        folder: of a model in safetensors; one with other weights is left to the loader.

    Raises:
        LoratomyError: a file is too large, no JSON or nested too deep; the config has more layers
            than the weights, or other embeddings; a setting of the tokenizer is none; a pattern of
            the tokenizer can take time without end.
    """
    check_files(folder)
    config = read_json(folder / "config.json", most=16 * 2**20, error=LoratomyError)
    if not isinstance(config, dict):
        raise LoratomyError(f"{folder / 'config.json'} is not a JSON object")
    text = config.get("text_config")
    config = text if isinstance(text, dict) else config
    shapes = _shapes(folder)
    if shapes:
        _check_layers(folder, config, shapes)
    _check_embeddings(folder, config, shapes)
    check_tokenizer_config(folder)
    _check_tokenizer(folder)


def check_files(folder: Path) -> None:
    """Raise where a text file of a base is not one: a link out of it, a pipe, or far too large.

    Raises:
        LoratomyError: names the file and what to do.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix not in TEXTS and path.suffix != ".safetensors":
            continue
        real = Path(os.path.realpath(path))
        if path.suffix in TEXTS and path.is_symlink() and not inside_or_cached(path, real):
            raise LoratomyError(
                f"{path} is a link out of the base's folder; copy the base with cp -rL and use the "
                "copy"
            )
        if not path.is_file():
            raise LoratomyError(f"{path} is not a plain file; put back the base's own or remove it")
        if path.suffix in TEXTS and (length := path.stat().st_size) > TOKENIZER:
            raise LoratomyError(
                f"{path} has {length:,} bytes, where {TOKENIZER:,} are the most; put back the "
                "base's own or remove it"
            )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all stored tensors; empty where there are no safetensors, or a damaged one."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            found |= read_header(path)
        except AdapterError:  # quantised types, damage: the loader reads or names them
            return {}
    return found


def _check_layers(
    folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    stored = {int(m[1]) for key in shapes if (m := _LAYER.search(key)) and len(m[1]) < 10}
    for name in _LAYERS:
        count = config.get(name)
        if count is None or not stored:
            continue
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise LoratomyError(f"{folder / 'config.json'}: {name} is {str(count)[:40]!r}")
        if count > max(stored) + 1:
            raise LoratomyError(
                f"{folder / 'config.json'}: {name} is {count}, and the weights hold "
                f"{max(stored) + 1} layers; take the config that belongs to these weights"
            )


def _check_embeddings(
    folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    size = config.get("vocab_size")
    for key, shape in shapes.items():
        if not key.endswith(_EMBEDDINGS) or len(shape) != 2:
            continue
        for name, value, at in (
            ("vocab_size", size, 0),
            ("hidden_size", config.get("hidden_size"), 1),
        ):
            other = at == 1 and "embed" in key and config.get("word_embed_proj_dim") is not None
            if isinstance(value, int) and value != shape[at] and not other:
                raise LoratomyError(
                    f"{folder / 'config.json'}: {name} is {value}, and {key} in the weights has "
                    f"the shape {shape}; take the config that belongs to these weights"
                )
        return


def _check_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    body = read_json(path, most=TOKENIZER, error=LoratomyError)
    if not isinstance(body, dict):
        raise LoratomyError(f"{path} is not a JSON object")
    for pattern in _patterns({k: body.get(k) for k in ("normalizer", "pre_tokenizer", "decoder")}):
        if why := endless(pattern):
            raise LoratomyError(
                f"{path}: the pattern {pattern[:80]!r} {why}, so that cutting a prompt into tokens "
                "may never end; take a tokenizer without it"
            )


def _patterns(value: Any) -> Iterator[str]:
    """Every regular expression below a value."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(found := item.get("Regex"), str):
                yield found
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def endless(pattern: str) -> str:
    """Why matching a pattern can take time without end, in words; empty where it cannot.

    The patterns of published tokenizers are alternatives of few repeats one after the other.
    Repeats in a repeat, and many repeats in a row, are what backtracking grows without end on.
    """
    from re import _constants, _parser  # pyright: ignore[reportAttributeAccessIssue]

    if len(pattern) > LONGEST_PATTERN:
        return f"has {len(pattern)} characters"
    plain = re.sub(r"\\[pP](\{[^}]*\}|\w)", "x", pattern)  # classes that `re` has not
    plain = re.sub(r"\[:\^?\w+:\]|\\[hHRXKgGzZ](<\w+>)?|&&", "x", plain)
    if re.search(r"\\g<|\(\?(R|&|P>|[0-9])|\(\?\(", pattern):
        return "calls itself"
    try:
        parts = _parser.parse(plain)
    except (re.error, OverflowError, ValueError):
        return "repeats groups" if re.search(r"\)(\*|\+|\{\d*,)", plain) else ""
    except RecursionError:
        return "is nested too deep"
    return _grows(parts, _constants, inside=False)


def _grows(parts: Any, names: Any, *, inside: bool) -> str:
    """Why a parsed pattern grows without end; `inside` an unbounded repeat or not."""
    in_a_row = 0
    for kind, value in parts:
        repeat = kind in (names.MAX_REPEAT, names.MIN_REPEAT)
        if repeat and value[1] > _MOST_OPEN:
            in_a_row += 1
            if inside or _branches(value[2], names):
                return "has repeats inside a repeat" if inside else "repeats alternatives"
        if in_a_row > _MOST_OPEN:
            return "has many repeats in a row"
        for inner in _inner(kind, value, names):
            unbounded = repeat and value[1] > _MOST_OPEN
            if why := _grows(inner, names, inside=inside or unbounded):
                return why
    return ""


def _branches(parts: Any, names: Any) -> bool:
    """Whether a pattern is made of alternatives, at any depth."""
    return any(
        kind is names.BRANCH or any(_branches(inner, names) for inner in _inner(kind, value, names))
        for kind, value in parts
    )


def _inner(kind: Any, value: Any, names: Any) -> list[Any]:
    """The patterns inside a part of a pattern."""
    if kind in (names.MAX_REPEAT, names.MIN_REPEAT, names.POSSESSIVE_REPEAT):
        return [value[2]]
    if kind is names.SUBPATTERN:
        return [value[3]]
    if kind is names.BRANCH:
        return list(value[1])
    if kind in (names.ASSERT, names.ASSERT_NOT):
        return [value[1]]
    return [value] if kind is names.ATOMIC_GROUP else []
