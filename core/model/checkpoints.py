"""A model on disk, read tensor by tensor under the names that its weights have in memory."""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..adapter.factors import Shapes
from ..adapter.safety import read_header
from ..errors import LoratomyError
from ..files.jsonfiles import RECORD, Outside, checked, read_json
from ..files.pickles import pickled_model
from .families import family_of
from .folder_check import check_base
from .subject import weight_shapes

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_IGNORED = r"rotary_emb\.inv_freq"
"""Stored by old checkpoints, computed from the config today."""


class _Index(Outside):
    weight_map: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a weight is stored: one tensor, or one per expert that transformers stacks."""

    keys: Mapping[str, tuple[str, ...]]
    """Pattern of the converter -> keys in the order of the experts; ``""`` where it is one."""
    converter: Any = None
    """transformers' rule from these tensors to the weight; None where it is stored as it is."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights in a folder of safetensors; nothing is read before `read`."""

    folder: Path
    """Where the files are."""
    config: Any
    """Its `PretrainedConfig`."""
    linear: Shapes
    """Weights that LoRA can adapt, by module or fused parameter: see `weight_shapes`."""
    shapes: Mapping[str, tuple[int, ...]]
    """In-memory name -> shape of every stored weight; tied ones count once."""
    dtypes: Mapping[str, torch.dtype]
    """In-memory name -> number format on disk."""
    _files: Mapping[str, Path]
    _sources: Mapping[str, _Source]
    _model: Any

    def read(self, name: str, expert: int | None = None) -> torch.Tensor:
        """One weight as stored, or one expert ``[d_out, d_in]`` of a fused weight.

        Raises:
            LoratomyError: its layout on disk cannot be mapped.
        """
        source = self._sources[name]
        if source.converter is None:
            return self._stored(source.keys[""][0], expert)
        if expert is None:
            experts = range(self.shapes[name][0])
            return torch.stack([self.read(name, e) for e in experts])
        converter = deepcopy(source.converter)
        for pattern, keys in source.keys.items():
            converter.add_tensor(name, keys[expert], pattern, self._stored(keys[expert], None))
        made = converter.convert(name, model=self._model, config=self.config)
        tensor = made[name][0] if name in made else torch.empty(0)
        if tuple(tensor.shape) != self.shapes[name][1:]:
            raise _unmapped(self.folder, next(iter(source.keys.values()))[expert], name)
        return tensor

    def _stored(self, key: str, part: int | None) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(self._files[key], framework="pt") as file:
            return file.get_tensor(key) if part is None else file.get_slice(key)[part]


def _unmapped(folder: Path, key: str, name: str) -> LoratomyError:
    return LoratomyError(
        f"{folder}: {key} is stored in a layout that cannot be mapped expert by expert to {name}; "
        "load the model with transformers and save it again"
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """The weights of a model folder under their in-memory names, headers read and checked.

    Names and layouts follow transformers' own rules for loading (its conversion mapping), against
    the model's skeleton without memory.

    Raises:
        LoratomyError: no model there, pickled weights, quantised, code of its own, an unknown
            family, or tensors that the model lacks or has too many of.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _refuse(folder)
    check_base(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the loader raises every kind; one line for the user
        raise LoratomyError(f"cannot read the config of {folder}: {error}") from error
    if getattr(config, "auto_map", None):
        raise LoratomyError(f"{folder} names code of its own (auto_map), which is never run")
    if getattr(config, "quantization_config", None):
        raise LoratomyError(
            f"{folder} is quantised: its weights are rounded to a few bits, from which no adapter "
            "can be extracted; give the model in float32, bfloat16 or float16"
        )
    family_of(config)
    files = _files(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sources = _sources(folder, model, sorted(files))
    shapes, dtypes = _headers(folder, model, files, sources)
    tied = _tied(model)
    linear = {n: s for n, s in weight_shapes(model).items() if f"{n}.weight" not in tied}
    held = Checkpoint(folder, config, linear, shapes, dtypes, files, sources, model)
    for name, other in tied.items():
        if name in sources and not torch.equal(held.read(name), held.read(other)):
            raise LoratomyError(f"{folder}: {name} differs from {other}, its config ties them")
    kept = {n: s for n, s in shapes.items() if n not in tied}
    return replace(held, shapes=kept)


def _refuse(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = "it is an adapter already, use it as it is" if adapter else "is it a model's folder?"
        raise LoratomyError(f"{folder} holds no config.json; {hint}")
    if (folder / "adapter_config.json").is_file():
        raise LoratomyError(f"{folder} holds an adapter beside the model; give the model alone")


def _files(folder: Path) -> dict[str, Path]:
    """Stored key -> its file."""
    if (folder / WEIGHTS).is_file():
        return dict.fromkeys(read_header(folder / WEIGHTS), folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        if message := pickled_model(folder):
            raise LoratomyError(message)
        raise LoratomyError(f"{folder} holds neither {WEIGHTS} nor {INDEX}")
    body = read_json(folder / INDEX, most=RECORD, error=LoratomyError)
    named = checked(_Index, body, folder / INDEX, error=LoratomyError).weight_map
    held: dict[str, Path] = {}
    for file in sorted(set(named.values())):
        if Path(file).name != file or not (folder / file).is_file():
            raise LoratomyError(f"{folder / INDEX} names {file!r}, which is not in its folder")
        held |= dict.fromkeys(read_header(folder / file), folder / file)
    if wrong := sorted(k for k, f in named.items() if held.get(k) != folder / f):
        raise LoratomyError(f"{folder / INDEX}: {wrong[0]} is not in {named[wrong[0]]}")
    return {key: held[key] for key in named}


def _sources(folder: Path, model: Any, keys: list[str]) -> dict[str, _Source]:
    """In-memory name -> where it is stored, by transformers' rules."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model)
    renamings = [r for r in rules if isinstance(r, WeightRenaming)]
    converters = [r for r in rules if isinstance(r, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    state = model.state_dict()
    found: dict[str, dict[str, list[str]]] = {}
    for key in sorted(keys, key=dot_natural_key):
        prefix = model.base_model_prefix
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = key, None
        if name in state:
            found.setdefault(name, {}).setdefault(pattern or "", []).append(key)
        elif not re.search(_IGNORED, key):
            raise LoratomyError(f"{folder} holds {key}, which a {model.config.model_type} has not")
    if missing := sorted(set(state) - set(found) - set(_tied(model))):
        raise LoratomyError(
            f"{folder} is incomplete: no tensor {missing[0]} ({len(missing)} missing)"
        )
    sources = {}
    for name, parts in found.items():
        converter = by_pattern[next(iter(parts))] if "" not in parts else None
        order = converter.source_patterns if converter else [""]
        experts = state[name].shape[0] if converter else 1
        counts = [len(parts.get(p, ())) for p in order]
        if counts != [experts] * len(order) or set(parts) - set(order):
            raise _unmapped(folder, next(iter(parts.values()))[0], name)
        sources[name] = _Source({p: tuple(parts[p]) for p in order}, converter)
    return sources


def _tied(model: Any) -> dict[str, str]:
    """Weights that are another weight: name -> the one it is."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return {}
    return dict(model._tied_weights_keys or {})


def _headers(
    folder: Path, model: Any, files: Mapping[str, Path], sources: Mapping[str, _Source]
) -> tuple[dict[str, tuple[int, ...]], dict[str, torch.dtype]]:
    """Shape and number format of every weight, by the headers alone."""
    from safetensors import safe_open

    numbers = {
        **{"F64": torch.float64, "F32": torch.float32},
        **{"F16": torch.float16, "BF16": torch.bfloat16},
    }
    stored: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for path in sorted(set(files.values())):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (no mapping)
                part = file.get_slice(key)
                stored[key] = (tuple(part.get_shape()), numbers[part.get_dtype()])
    shapes, dtypes = {}, {}
    state = model.state_dict()
    for name, source in sources.items():
        keys = [key for group in source.keys.values() for key in group]
        shape, dtype = tuple(state[name].shape), stored[keys[0]][1]
        if source.converter is None and stored[keys[0]][0] != shape:
            raise LoratomyError(
                f"{folder}: {keys[0]} has shape {stored[keys[0]][0]}, its config calls for {shape}"
            )
        if other := [key for key in keys if stored[key][1] != dtype]:
            raise LoratomyError(
                f"{folder}: {other[0]} is {stored[other[0]][1]}, {keys[0]} is {dtype}; save the "
                "model again in one number format"
            )
        shapes[name], dtypes[name] = shape, dtype
    return shapes, dtypes
