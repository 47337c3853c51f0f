"""How adapters spell their tensors on disk: PEFT's names, their variants, and MLX's."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import AdapterError

PREFIX = "base_model.model."
EMBEDDINGS = ("embed_tokens", "wte", "embed_in")
"""Last parts of the names of token embeddings, whose factors PEFT calls ``lora_embedding_A``."""
Shape = tuple[int, ...]

_FACTOR = re.compile(r"(?P<stem>.+)\.lora_(?P<part>[AB])(?:\.(?P<name>[^.]+))?\.weight")
_EMBEDDED = re.compile(r"(?P<stem>.+)\.lora_embedding_(?P<part>[AB])(?:\.(?P<name>[^.]+))?")
_SAVED = re.compile(r"(?P<stem>.+)\.modules_to_save(?:\.(?P<name>[^.]+))?\.(?P<what>weight|bias)")
_COPY = re.compile(r"(?P<stem>.+?)(?:\.base_layer|\.original_module)?\.(?P<what>weight|bias)")
_MLX = re.compile(r"(?P<stem>.+)\.lora_(?P<part>[ab])")
_LETTER = re.compile(r"(lora_(?:embedding_)?)([ABab])(?![a-z])")
_SWAPPED = str.maketrans("ABab", "BAba")
_REFUSED = {
    "lora_magnitude_vector": "DoRA magnitudes",
    "token_adapter": "trained token embeddings (trainable_token_indices)",
    ".lora_A.bias": "a bias",
    ".lora_B.bias": "a bias",
    "lora_bias": "a bias",
    "lora_E": "AdaLoRA's singular values",
    "vera_": "VeRA's vectors",
    "hada_": "LoHa's factors",
    "lokr_": "LoKr's factors",
}
_WRAPPERS = (
    ("", ""),
    ("model.", "model.language_model."),
    ("", "language_model."),
    ("model.language_model.", "language_model.model."),
    ("model.language_model.", "model."),
)
"""Beginnings of names in the base and in an adapter: a multimodal wrapper holds the text tower as
``model.language_model`` today and as ``language_model`` (of the whole text model) before."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors of an adapter file by what they are."""

    factors: Mapping[str, tuple[str, str]]
    """Name of the module in the adapter, nested wrappers included -> keys of its A and B."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Name of a parameter -> key under which all of it is stored beside the factors."""
    transposed: bool = False
    """Whether A is stored as ``[d_in, rank]`` and B as ``[rank, d_out]``, as MLX does."""


def sorted_out(path: Path, shapes: Mapping[str, Shape], *, mlx: bool = False) -> Stored:
    """The tensors of an adapter file by what they are, from their names and shapes alone.

    Raises:
        AdapterError: one that is no factor of plain LoRA nor a copy of a weight (by name), a factor
            without its partner, two adapters in one file.
    """
    parts: dict[str, dict[str, str]] = {}
    names: set[str] = set()
    copies: dict[str, str] = {}
    for key in shapes:
        stem = key.replace("_orig_mod.", "")  # torch.compile was on
        if wrong := next((what for part, what in _REFUSED.items() if part in stem), None):
            raise AdapterError(f"{path}: {key} is {wrong}, which is not supported")
        if not mlx and not stem.startswith(PREFIX):
            raise AdapterError(
                f"{path}: {key} is not a LoRA factor of a linear layer under {PREFIX[:-1]}, as "
                "PEFT stores them; save the adapter with PEFT (model.save_pretrained)"
            )
        stem = stem.removeprefix(PREFIX)
        found = (
            _MLX.fullmatch(stem) if mlx else _FACTOR.fullmatch(stem) or _EMBEDDED.fullmatch(stem)
        )
        if found:
            _two_dimensions(path, key, shapes[key])
            _once(path, key, parts.setdefault(found["stem"], {}), found["part"].upper())
            names |= {found["name"]} - {None} if not mlx else set()
        elif not mlx and (found := _SAVED.fullmatch(stem) or _COPY.fullmatch(stem)):
            _once(path, key, copies, f"{found['stem']}.{found['what']}")
        else:
            raise AdapterError(f"{path}: {key} is not a LoRA factor of a linear layer")
    if len(names) > 1:
        raise AdapterError(
            f"{path} holds several adapters ({', '.join(sorted(names)[:5])}); save one alone"
        )
    return Stored(_pairs(path, parts), copies, transposed=mlx)


def _two_dimensions(path: Path, key: str, shape: Shape) -> None:
    if len(shape) != 2:
        zero = "; was it saved under DeepSpeed ZeRO-3 or FSDP without gathering?" * (len(shape) < 2)
        raise AdapterError(f"{path}: {key} has shape {shape}; a factor has two dimensions{zero}")


def _once(path: Path, key: str, held: dict[str, str], name: str) -> None:
    if name in held:
        raise AdapterError(f"{path}: {held[name]} and {key} are the same thing twice")
    held[name] = key


def _pairs(path: Path, parts: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, str]]:
    pairs = {}
    for stem, found in parts.items():
        if len(found) == 1:
            (key,) = found.values()
            partner = _LETTER.sub(lambda m: m[1] + m[2].translate(_SWAPPED), key)
            raise AdapterError(f"{path}: {key} has no partner {partner}; the file is incomplete")
        pairs[stem] = (found["A"], found["B"])
    return pairs


def spelling(stored: Iterable[str], known: Iterable[str]) -> tuple[str, str]:
    """Beginnings of names in the base and in the adapter under which the adapter's fit the base.

    The first pair under which every stored name is one of the base's; where none is, names are
    taken as they are.

    Args:
        stored: names of modules in the adapter.
        known: names of modules in the base.
    """
    stored, known = set(stored), set(known)
    for inside, outside in _WRAPPERS:
        there = {spelled(name, (inside, outside)) for name in known}
        if stored and stored <= there:
            return inside, outside
    return "", ""


def spelled(name: str, beginnings: tuple[str, str]) -> str:
    """A name of the base as the adapter spells it, see `spelling`."""
    inside, outside = beginnings
    return outside + name.removeprefix(inside) if name.startswith(inside) else name


def unspelled(name: str, beginnings: tuple[str, str]) -> str:
    """What the base calls what the adapter calls so, the inverse of `spelled`."""
    inside, outside = beginnings
    return inside + name.removeprefix(outside) if outside and name.startswith(outside) else name
