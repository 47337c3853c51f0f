"""The gate: every adapter folder is checked here before anything else may read it.

PEFT loads adapters that are half empty, carry NaN or belong to another model and only warns;
pickles run code. Nothing here allocates by what a file claims: shapes come from the header, whose
length is compared with the file's size.
"""

import os
import shlex
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..files.jsonfiles import read_json
from ..files.paths import inside_or_cached
from ..files.pickles import SUFFIXES, pickled_adapter
from .stored import Stored, sorted_out

WEIGHTS = "adapter_model.safetensors"
MLX_WEIGHTS = "adapters.safetensors"
CONFIG = "adapter_config.json"
MAX_HEADER = 64 * 2**20
MAX_CONFIG = 16 * 2**20
LFS = b"version https://git-lfs"
"""How a file begins that git-lfs has put in place of the one that is meant."""
MAX_RANK = 4096
MAX_ALPHA = 1e6
_FLOATS = ("F64", "F32", "F16", "BF16")

_REFUSED = {
    "use_dora": "DoRA changes W by full rank through its magnitudes",
    "lora_bias": "biases change behaviour outside B A",
    "trainable_token_indices": "trained token embeddings change behaviour outside B A",
    "layer_replication": "replicated layers are another base model",
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


_TRAINER = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "global_step")
"""Beginnings of the names of what a trainer keeps for going on, which holds no weights."""


@dataclass(frozen=True, slots=True)
class Header:
    """What an adapter folder holds, read without touching its tensors."""

    folder: Path
    config: Mapping[str, Any]
    """adapter_config.json, checked; of MLX's in PEFT's words."""
    shapes: Mapping[str, tuple[int, ...]]
    """Storage key -> shape."""
    stored: Stored
    """The tensors by what they are."""
    weights: str = WEIGHTS
    """Name of the file of tensors."""

    @property
    def files(self) -> tuple[str, str]:
        """Names of the files that make the adapter."""
        return CONFIG, self.weights


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    real = Path(os.path.realpath(path))  # Path.resolve raises on a link to itself
    if path.is_symlink() and not inside_or_cached(path, real):
        raise AdapterError(
            f"{path} is a link out of its folder; copy the adapter with cp -rL and use the copy"
        )
    if path.is_symlink() and not path.exists():
        raise AdapterError(f"{path} is a link to {real}, which is not there; fetch it again")
    if path.exists() and not path.is_file():
        raise AdapterError(f"{path} is not a plain file")
    return path


def not_a_pointer(path: Path) -> None:
    """Raise where git-lfs left a pointer of some lines in place of a file.

    Raises:
        AdapterError: it did.
    """
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise AdapterError(
                f"{path} is a git-lfs pointer, not the file: git lfs pull (in its repository) "
                "fetches it"
            )


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a safetensors file, by its header alone.

    Raises:
        AdapterError: truncated, an impossible header length, a type that is no floating point, or
            tensors that overlap or do not fit their shapes or the file.
    """
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    not_a_pointer(path)
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 2 <= length <= min(size - 8, MAX_HEADER):
            raise AdapterError(
                f"{path} is truncated or not safetensors: {size} bytes, header says {length}"
            )
    try:
        with safe_open(path, framework="numpy") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
            shapes = {key: tuple(part.get_shape()) for key, part in parts.items()}
            types = {key: part.get_dtype() for key, part in parts.items()}
    except SafetensorError as error:
        raise AdapterError(f"{path} is truncated or damaged: {error}; copy it again") from error
    for key, shape in shapes.items():
        if types[key] not in _FLOATS:
            raise AdapterError(f"{path}: {key} has type {types[key]}; use {', '.join(_FLOATS)}")
        if not all(shape):
            raise AdapterError(f"{path}: {key} has the impossible shape {shape}")
    if not shapes:
        raise AdapterError(f"{path} holds no tensors")
    return shapes


def _read_config(path: Path) -> dict[str, Any]:
    not_a_pointer(path)
    config = read_json(path, most=MAX_CONFIG, error=AdapterError)
    if not isinstance(config, dict):
        raise AdapterError(f"{path} is not a JSON object")
    return config


def _number(name: str, value: Any, *, whole: bool) -> None:
    most = MAX_RANK if whole else MAX_ALPHA
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most
    if not ok or (whole and value != int(value)):
        limit = f"a {'whole ' * whole}number {'from 1' if whole else 'above 0'} up to {most:g}"
        raise AdapterError(f"{CONFIG}: {name} is {repr(value)[:40]}; it must be {limit}")


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{path}: peft_type {kind!r} is not supported; supported: LORA")
    for name, why in _REFUSED.items():
        if config.get(name):
            raise AdapterError(f"{CONFIG}: {name} is not supported: {why}")
    mapping = config.get("auto_mapping") or {}
    if not isinstance(mapping, dict):
        raise AdapterError(f"{CONFIG}: auto_mapping must be an object, found {mapping!r}")
    library = str(mapping.get("parent_library", "transformers"))
    if library.split(".")[0] != "transformers":  # PEFT itself writes transformers' own classes
        raise AdapterError(f"{CONFIG}: auto_mapping names code of {library!r}, which is never run")
    if config.get("bias") not in (None, "none"):
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
    names = ("target_modules", "exclude_modules", "target_parameters", "layers_pattern")
    whole = config.get("modules_to_save")
    if not (whole is None or _list_of(str, whole)):
        raise AdapterError(f"{CONFIG}: modules_to_save must be a list of names, is {whole!r}")
    for name in names:
        value = config.get(name)
        if not (value is None or isinstance(value, str) or _list_of(str, value)):
            raise AdapterError(f"{CONFIG}: {name} must be a name or a list of names, is {value!r}")


@cache
def _known_settings() -> frozenset[str]:
    """Every key of adapter_config.json that PEFT reads or writes for LoRA."""
    from peft import LoraConfig

    return frozenset(field.name for field in fields(LoraConfig)) | {"peft_version"}


def _check_numbers(config: Mapping[str, Any]) -> None:
    _number("r", config.get("r"), whole=True)
    _number("lora_alpha", config.get("lora_alpha"), whole=False)
    for name, whole in (("rank_pattern", True), ("alpha_pattern", False)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            raise AdapterError(f"{CONFIG}: {name} must be an object, found {pattern!r}")
        for key, value in pattern.items():
            _number(f"{name}[{key[:80]!r}]", value, whole=whole)


def _list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) for v in value)


def _mlx_config(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """An MLX adapter's settings in PEFT's words: ``y = W x + scale * (x a) b``."""
    kind, given = config.get("fine_tune_type", "lora"), config.get("lora_parameters")
    if kind != "lora" or not isinstance(given, dict):
        raise AdapterError(
            f"{path} is of an MLX adapter ({kind!r}) with the settings {str(given)[:60]}; "
            "plain LoRA alone is read: fuse it (mlx_lm.fuse) and give loratomy extract the model"
        )
    _number("lora_parameters.rank", given.get("rank"), whole=True)
    if "scale" not in given:
        raise AdapterError(
            f"{path}: lora_parameters has no scale (it has {', '.join(map(str, given))[:80]}); add "
            'the factor that training multiplied B A with, e.g. "scale": 20.0'
        )
    _number("lora_parameters.scale", given["scale"], whole=False)
    rank = int(given["rank"])
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": given["scale"] * rank,
        "target_modules": None,
        "base_model_name_or_path": config.get("model"),
    }


def below(folder: Path) -> list[Path]:
    """Sub-folders that hold an adapter, checkpoints by their numbers; at most two levels down."""
    found = [p.parent for pattern in ("*", "*/*") for p in folder.glob(f"{pattern}/{CONFIG}")]
    return sorted(found, key=lambda p: [(len(part), part) for part in p.parts])


def check_folder(folder: Path) -> Header:
    """The checked header of an adapter folder; reads no tensor and allocates nothing large.

    Raises:
        AdapterError: not a folder, neither PEFT's nor MLX's, a pickle, a pointer of git-lfs, a link
            that leaves the folder, truncated, an unsupported feature (named), or numbers that make
            no sense.
    """
    if not folder.is_dir():
        what = "does not exist" if not folder.exists() else "is not a folder"
        raise AdapterError(f"the adapter {folder} {what}; give the folder with {CONFIG}")
    config_path, weights = _file(folder, CONFIG), _file(folder, WEIGHTS)
    if not config_path.exists():
        raise AdapterError(_no_config(folder))
    config = _read_config(config_path)
    mlx = not weights.exists() and _file(folder, MLX_WEIGHTS).exists()
    if mlx:
        weights, config = folder / MLX_WEIGHTS, _mlx_config(config_path, config)
    _check_config(config_path, config)
    if unknown := sorted(k for k, v in config.items() if v and k not in _known_settings()):
        warnings.warn(
            f"{config_path}: {', '.join(unknown)[:200]} is no setting that PEFT knows; it is left "
            "out of account, as PEFT does",
            stacklevel=2,
        )
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in SUFFIXES)
    pickles = [name for name in pickles if not name.startswith(_TRAINER)]
    if not weights.exists():
        raise AdapterError(_no_weights(folder, pickles))
    if pickles:
        warnings.warn(
            f"{folder}: {', '.join(pickles)} ignored; reading {weights.name}", stacklevel=2
        )
    shapes = read_header(weights)
    return Header(folder, config, shapes, sorted_out(weights, shapes, mlx=mlx), weights.name)


def _no_config(folder: Path) -> str:
    if found := below(folder):
        names = ", ".join(str(p.relative_to(folder)) for p in found[-5:])
        more = f" and {len(found) - 5} more" * (len(found) > 5)
        return (
            f"{folder} holds no {CONFIG}, but {len(found)} of its sub-folders: {names}{more}; give "
            f"one of them, e.g. {shlex.quote(str(found[-1]))}"
        )
    model = (folder / "config.json").is_file()
    what = "it holds a whole model: loratomy extract takes that" if model else "is it PEFT's?"
    return f"{folder} holds no {CONFIG}; {what}"


def _no_weights(folder: Path, pickles: list[str]) -> str:
    if not pickles:
        held = sorted(p.name for p in folder.iterdir() if p.name.startswith(_TRAINER))
        only = f" (only what a trainer keeps for going on: {', '.join(held[:4])})" if held else ""
        return f"{folder} holds no {WEIGHTS}{only}; copy it there too"
    name = "adapter_model.bin" if "adapter_model.bin" in pickles else pickles[0]
    return pickled_adapter(folder, name, WEIGHTS)
