"""The gate: every adapter folder is checked here before anything else may read it.

PEFT loads adapters that are half empty, carry NaN or belong to another model and only warns;
pickles run code. Nothing here allocates by what a file claims: shapes come from the header, the
header's length from the file's size.
"""

import json
import math
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from .errors import AdapterError
from .jsonfiles import read_json

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
MAX_HEADER = 64 * 2**20
MAX_RANK = 4096
MAX_ALPHA = 1e6
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

_REFUSED = {
    "use_dora": "DoRA changes W by full rank through its magnitudes",
    "modules_to_save": "modules saved whole change behaviour outside B A",
    "lora_bias": "biases change behaviour outside B A",
    "trainable_token_indices": "trained token embeddings change behaviour outside B A",
    "layer_replication": "replicated layers are another base model",
    "fan_in_fan_out": "transposed weights are not among the supported families",
    "use_qalora": "QALoRA pools its inputs",
    "alora_invocation_tokens": "activated LoRA switches itself on in mid-prompt",
    "megatron_config": "Megatron layers are not supported",
    "velora_config": "VeLoRA is not supported",
    "monteclora_config": "MonteCLoRA is not supported",
    "use_bdlora": "block-diagonal LoRA is not supported",
    "arrow_config": "Arrow routing is not supported",
    "kasa_config": "KaSA is not supported",
}
_PLAIN_INITS = (True, False, "gaussian", "eva", "orthogonal", None)
_REFUSED_KEYS = {
    "lora_magnitude_vector": "DoRA magnitudes",
    "lora_embedding_": "a trained embedding",
    "modules_to_save": "a module saved whole",
    "token_adapter": "trained token embeddings",
    ".bias": "a bias",
    ".base_layer.weight": "a copy of a base weight (PEFT's save_embedding_layers=False omits it)",
}


@dataclass(frozen=True, slots=True)
class Header:
    """What an adapter folder holds, read without touching its tensors."""

    folder: Path
    config: Mapping[str, Any]
    """adapter_config.json, checked."""
    shapes: Mapping[str, tuple[int, ...]]
    """Storage key -> shape."""


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    real = Path(os.path.realpath(path))  # Path.resolve raises on a link to itself
    if path.is_symlink() and not real.is_relative_to(folder.resolve()):
        raise AdapterError(
            f"{path} is a link out of its folder; copy the adapter with cp -rL and use the copy"
        )
    if path.exists() and not path.is_file():
        raise AdapterError(f"{path} is not a plain file")
    return path


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a safetensors file, by its header alone.

    Raises:
        AdapterError: truncated, an impossible header length, unknown types or offsets that do
            not fit the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(size - 8, MAX_HEADER):
            raise AdapterError(
                f"{path} is truncated or not safetensors: {size} bytes, header says {length}"
            )
        try:
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            shapes = {key: tuple(entry["shape"]) for key, entry in entries.items()}
            spans = {
                key: tuple(map(index, entry["data_offsets"])) for key, entry in entries.items()
            }
            types = {key: str(entry["dtype"]) for key, entry in entries.items()}
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            raise AdapterError(f"{path} has a damaged safetensors header: {error}") from error
    for key, shape in shapes.items():
        if types[key] not in _FLOATS:
            raise AdapterError(f"{path}: {key} has type {types[key]}; use {', '.join(_FLOATS)}")
        if not all(isinstance(n, int) and n > 0 for n in shape):
            raise AdapterError(f"{path}: {key} has the impossible shape {shape}")
        want = math.prod(shape) * _FLOATS[types[key]]
        if len(spans[key]) != 2 or spans[key][1] - spans[key][0] != want or spans[key][0] < 0:
            raise AdapterError(f"{path}: the bytes of {key} do not fit its shape {shape}")
        if spans[key][1] > size - 8 - length:
            raise AdapterError(
                f"{path} is truncated: {key} ends beyond the file's {size} bytes; copy it again"
            )
    if not shapes:
        raise AdapterError(f"{path} holds no tensors")
    return shapes


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path, error=AdapterError)
    if not isinstance(config, dict):
        raise AdapterError(f"{path} is not a JSON object")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{path}: peft_type {kind!r} is not supported; supported: LORA")
    return config


def _number(name: str, value: Any, *, whole: bool) -> None:
    most = MAX_RANK if whole else MAX_ALPHA
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most
    if not ok or (whole and value != int(value)):
        limit = f"a {'whole ' * whole}number {'from 1' if whole else 'above 0'} up to {most:g}"
        raise AdapterError(f"{CONFIG}: {name} is {repr(value)[:40]}; it must be {limit}")


def _check_config(config: Mapping[str, Any]) -> None:
    for name, why in _REFUSED.items():
        if config.get(name):
            raise AdapterError(f"{CONFIG}: {name} is not supported: {why}")
    mapping = config.get("auto_mapping") or {}
    if not isinstance(mapping, dict):
        raise AdapterError(f"{CONFIG}: auto_mapping must be an object, found {mapping!r}")
    library = str(mapping.get("parent_library", "transformers"))
    if library.split(".")[0] != "transformers":  # PEFT itself writes transformers' own classes
        raise AdapterError(f"{CONFIG}: auto_mapping names code of {library!r}, which is never run")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{CONFIG}: bias {config['bias']!r} is not supported; only 'none'")
    init = config.get("init_lora_weights", True)
    if isinstance(init, list | dict) or init not in _PLAIN_INITS:
        raise AdapterError(
            f"{CONFIG}: init_lora_weights {init!r} also changes the base weights; convert the "
            "adapter to plain LoRA first (peft: save_pretrained with "
            "path_initial_model_for_weight_conversion)"
        )
    _check_numbers(config)
    layers = config.get("layers_to_transform")
    if not (layers is None or isinstance(layers, int) or _list_of(int, layers)):
        raise AdapterError(f"{CONFIG}: layers_to_transform must be layer numbers, is {layers!r}")
    for name in ("target_modules", "exclude_modules", "target_parameters"):
        value = config.get(name)
        if not (value is None or isinstance(value, str) or _list_of(str, value)):
            raise AdapterError(f"{CONFIG}: {name} must be a name or a list of names, is {value!r}")


def _check_numbers(config: Mapping[str, Any]) -> None:
    _number("r", config.get("r"), whole=True)
    _number("lora_alpha", config.get("lora_alpha"), whole=False)
    for name, whole in (("rank_pattern", True), ("alpha_pattern", False)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            raise AdapterError(f"{CONFIG}: {name} must be an object, found {pattern!r}")
        for key, value in pattern.items():
            if not key.replace(".", "").replace("_", "").isalnum():
                raise AdapterError(
                    f"{CONFIG}: the {name} key {key!r} is a regular expression; write module names"
                )
            _number(f"{name}[{key!r}]", value, whole=whole)


def _list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) for v in value)


def _check_keys(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in shapes.items():
        for part, what in _REFUSED_KEYS.items():
            if part in key:
                raise AdapterError(f"{path}: {key} is {what}, which is not supported")
        if not key.startswith(PREFIX) or not key.endswith((".lora_A.weight", ".lora_B.weight")):
            raise AdapterError(f"{path}: {key} is not a LoRA factor of a linear layer")
        if len(shape) != 2:
            raise AdapterError(f"{path}: {key} has shape {shape}; a factor has two dimensions")
    for key in shapes:
        other = ".lora_B.weight" if key.endswith(".lora_A.weight") else ".lora_A.weight"
        partner = key[: -len(other)] + other
        if partner not in shapes:
            raise AdapterError(f"{path}: {key} has no partner {partner}; the file is incomplete")


def check_folder(folder: Path) -> Header:
    """The checked header of an adapter folder; reads no tensor and allocates nothing large.

    Raises:
        AdapterError: not a folder, not PEFT, a pickle, a link that leaves the folder, truncated,
            an unsupported feature (named), or numbers that make no sense.
    """
    if not folder.is_dir():
        what = "does not exist" if not folder.exists() else "is not a folder"
        raise AdapterError(f"the adapter {folder} {what}; give the folder with {CONFIG}")
    config_path, weights = _file(folder, CONFIG), _file(folder, WEIGHTS)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pkl"))
    if not config_path.exists():
        raise AdapterError(f"{folder} holds no {CONFIG}; is it a PEFT adapter?")
    if not weights.exists():
        if pickles:
            raise AdapterError(
                f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code; "
                "ask its author for safetensors"
            )
        raise AdapterError(f"{folder} holds no {WEIGHTS}")
    if pickles:
        warnings.warn(f"{folder}: {', '.join(pickles)} ignored; reading {WEIGHTS}", stacklevel=2)
    config = _read_config(config_path)
    _check_config(config)
    shapes = read_header(weights)
    _check_keys(weights, shapes)
    return Header(folder, config, shapes)
