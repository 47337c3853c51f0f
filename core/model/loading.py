"""A base from a folder or the hub, checked and loaded as a subject."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import LoratomyError
from ..files.paths import check_utf8
from ..files.pickles import pickled_model
from ..rendering.prompts import Renderer
from ..rendering.rendering import Rendering
from .families import check_family, family_of
from .folder_check import check_base
from .subject import Subject, quantisation, quantised
from .tokenizer import check_vocabulary, load_error, load_tokenizer

_REMOTE_CODE = "the base {} names code of its own (auto_map), which is never run; take another base"


def load_subject(
    source: str,
    *,
    rendering: Rendering | None = None,
    device: str = "auto",
    dtype: str = "auto",
    path: Path | None = None,
    otherwise: Rendering | None = None,
) -> Subject:
    """The base model from a folder or hub id, checked against its family.

    Args:
        source: what the user gave; kept as the subject's name.
        rendering: how prompts are rendered; None for the tokenizer's own chat template (an error
            when it has none).
        device: ``auto`` takes a GPU when there is one.
        dtype: ``auto`` is float32 on the CPU and bfloat16 on a GPU.
        path: where the files are, when that differs from the name (the built-in model).
        otherwise: the rendering to take when none is given and the tokenizer has no chat template.

    Raises:
        LoratomyError: missing or empty folder, remote code, pickled weights, unknown family, no
            chat template, hub out of reach.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.peft_utils import find_adapter_config_file

    where = str(path or source)
    local = Path(where).is_dir()
    if not local and (path or where.startswith((".", "/", "~")) or where.count("/") != 1):
        raise LoratomyError(f"the base {where!r} is neither a folder nor a hub id (owner/name)")
    if local and not (Path(where) / "config.json").exists():
        raise LoratomyError(f"the base folder {where} holds no config.json")
    if local and (pickled := pickled_model(Path(where))):
        raise LoratomyError(f"the base {pickled}")
    if local:
        check_utf8(Path(where), "base")
        check_base(Path(where))
    place = _place(device)
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise LoratomyError(f"unknown dtype {dtype!r}; use float32, bfloat16 or float16")
    common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(where, **common)
        if find_adapter_config_file(where, local_files_only=local):  # transformers would put it on
            raise LoratomyError(f"the base {where} holds an adapter; give the base alone")
        if getattr(config, "auto_map", None):
            raise LoratomyError(_REMOTE_CODE.format(where))
        family, number = family_of(config), _number(config, dtype, place)
        tokenizer = load_tokenizer(where, **common)
        common |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        both: Any = AutoModelForCausalLM.from_pretrained(
            where, dtype=number, use_safetensors=True, **common
        )
        loaded, info = both
        _check_whole(info, where)
    except LoratomyError:
        raise
    except Exception as error:  # the loaders raise every kind; one line for the user
        raise LoratomyError(_load_advice(where, local, error)) from error
    check_vocabulary(tokenizer, loaded.get_input_embeddings().weight.shape[0], where)
    model = loaded.to(place).eval().requires_grad_(False)
    quiet_generation(model)
    if rendering is None:
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        rendering = Rendering() if has_chat or otherwise is None else otherwise
    renderer = Renderer(tokenizer, rendering)
    check_family(model, family)
    return Subject(model, renderer, family, source)


def _check_whole(info: Mapping[str, Any], where: str) -> None:
    """Raise where a tensor was not read, which transformers fills with random numbers."""
    if missing := sorted(info["missing_keys"]):
        raise LoratomyError(
            f"the base {where} is incomplete: no tensor {missing[0]} ({len(missing)} missing)"
        )
    if wrong := sorted(info["mismatched_keys"]):
        name, stored, wanted = wrong[0]
        raise LoratomyError(
            f"the base {where}: {name} has the shape {tuple(stored)} in the weights and "
            f"{tuple(wanted)} by config.json ({len(wrong)} such); take the config that belongs to "
            "these weights"
        )


def _place(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise LoratomyError(f"no device {device!r} here; use auto, cpu or cuda") from error


def _number(config: Any, dtype: str, place: torch.device) -> torch.dtype:
    """The number format to load in; for a 4-bit base the one that it computes in."""
    found = quantisation(config)
    compute = found.get("bnb_4bit_compute_dtype") if found.get("load_in_4bit") else None
    if compute:
        compute = str(compute).removeprefix("torch.")
        if dtype not in ("auto", compute):
            raise LoratomyError(
                f"the base is quantised, {quantised(config, dtype)}: its weights stay so under "
                f"--dtype {dtype}; leave --dtype out, or give the base that is not quantised"
            )
        return getattr(torch, compute)
    auto = "bfloat16" if place.type == "cuda" else "float32"
    return getattr(torch, auto if dtype == "auto" else dtype)


def quiet_generation(model: Any) -> None:
    """Greedy settings only: sampling options of the checkpoint would warn and not apply."""
    for name in ("temperature", "top_p", "top_k"):
        setattr(model.generation_config, name, None)
    model.generation_config.do_sample = False


def _load_advice(where: str, local: bool, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return _REMOTE_CODE.format(where)
    if local:
        return (
            f"cannot load the base {where}: {load_error(error)}; look at its config.json and "
            "tokenizer_config.json, or copy the base again"
        )
    return (
        f"cannot load {where!r} from the hub: {load_error(error)}; for a gated model set HF_TOKEN, "
        "without a network give a local folder"
    )
