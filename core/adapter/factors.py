"""Adapters as factors: read through the gate, held exactly, written as plain PEFT folders."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange

from ..errors import AdapterError
from ..files.atomic import need_room
from .copies import Weights, check_copies, check_whole
from .patterns import Patterns
from .safety import CONFIG, WEIGHTS, Header, check_folder
from .stored import PREFIX, spelled, spelling, unspelled
from .targets import expected, fused_keys, is_embedding, rank_and_scaling

Shapes = Mapping[str, tuple[int, ...]]
"""Weight name in the base -> shape: ``[d_out, d_in]``, or ``[expert, d_out, d_in]`` when fused."""


@dataclass(frozen=True, slots=True)
class Factors:
    """One module's weight change ``dW = scaling * B @ A``; fused experts lead with their axis."""

    a: torch.Tensor
    """``[rank, d_in]`` or ``[expert, rank, d_in]``, float32."""
    b: torch.Tensor
    """``[d_out, rank]`` or ``[expert, d_out, rank]``, float32."""
    scaling: float
    """alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA."""

    @property
    def rank(self) -> int:
        """The inner dimension, zero directions included."""
        return self.a.shape[-2]

    @property
    def fused(self) -> bool:
        """Whether this is a stack of experts."""
        return self.a.dim() == 3

    def dense(self) -> torch.Tensor:
        """dW itself, ``[..., d_out, d_in]``; for tests and small models only."""
        return self.scaling * self.b @ self.a


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter: factors by module name, in the order of the base model."""

    modules: Mapping[str, Factors]
    config: Mapping[str, Any]
    """The adapter_config.json it came from or was made with."""

    def with_modules(self, modules: Mapping[str, Factors]) -> "Adapter":
        """The same adapter with other factors."""
        return replace(self, modules=dict(modules))


def layer_of(name: str) -> int:
    """The layer number in a module name, -1 outside the layers."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


def kind_of(name: str) -> str:
    """The last part of a module name, e.g. ``q_proj``."""
    return name.rsplit(".", 1)[-1]


def storage_keys(adapter: Adapter) -> dict[str, str]:
    """Module name -> the stem of its keys in a PEFT state dict, without ``base_model.model.``."""
    fused = fused_keys(n for n, f in adapter.modules.items() if f.fused)
    return {name: fused.get(name, name) for name in adapter.modules}


def factor_keys(adapter: Adapter, name: str = "") -> dict[str, tuple[str, str]]:
    """Module name -> keys of its A and B, without ``base_model.model.``.

    Args:
        adapter: of whose modules.
        name: of the adapter on a live model; empty as on disk, where it has none.
    """
    called, keys = f".{name}" * bool(name), {}
    for module, stem in storage_keys(adapter).items():
        form = "lora_embedding_{}{}" if is_embedding(module) else "lora_{}{}.weight"
        a, b = (f"{stem}.{form.format(part, called)}" for part in "AB")
        keys[module] = (a, b)
    return keys


def _listing(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where one module's factors are stored, and what they must be."""

    keys: tuple[str, str]
    rank: int
    scaling: float


def _ignored(name: str, ignore: Iterable[str]) -> bool:
    """Whether a module is, lies in, or ends in one of some names."""
    dotted = f".{name}."
    return any(f".{part.strip('.')}." in dotted for part in ignore)


def _beginnings(header: Header, shapes: Shapes, ignore: frozenset[str]) -> tuple[str, str]:
    """How the adapter's names begin where the base's begin otherwise, see `spelling`."""
    stored = (s for s in header.stored.factors if not _ignored(s, ignore))
    parents = {n.rsplit(".", 1)[0] for n, s in shapes.items() if len(s) == 3}
    return spelling((s.replace(".base_layer", "") for s in stored), {*shapes, *parents})


def _planned(
    header: Header, shapes: Shapes, ignore: frozenset[str], beginnings: tuple[str, str]
) -> dict[str, _Plan]:
    """Module name -> its plan; raises unless the stored factors are those that are called for."""
    stored = header.stored.factors
    theirs = {spelled(name, beginnings): name for name in shapes}
    patterns = Patterns(f"{header.folder}/{CONFIG}")
    named = {there: shapes[name] for there, name in theirs.items()}
    stems = expected(header.config, named, stored, patterns)
    wanted = {s for s in stems.values() if not _ignored(s, ignore)}
    if not set(stored) & wanted:
        raise AdapterError(
            f"no tensor of {header.folder} matches this base model: it has {_listing(stored)}; "
            "was it trained on another base?"
        )
    if extra := {s for s in set(stored) - wanted if not _ignored(s, ignore)}:
        raise AdapterError(
            f"{header.folder} adapts modules that this base or its own config does not have: "
            f"{_listing(extra)}; name them with --ignore-module to leave them out"
        )
    if missing := wanted - set(stored):
        raise AdapterError(
            f"{header.folder} is incomplete: no tensors for {_listing(missing)} "
            f"({len(missing)} of {len(wanted)} modules missing)"
        )
    return {
        theirs[there]: _Plan(stored[stem], *rank_and_scaling(header.config, there, patterns))
        for there, stem in stems.items()
        if stem in wanted
    }


def _check_shapes(header: Header, plan: Mapping[str, _Plan], shapes: Shapes) -> None:
    turned = header.stored.transposed
    for name, module in plan.items():
        *experts, d_out, d_in = shapes[name]
        inner = module.rank * math.prod(experts)
        for key, want in zip(module.keys, ((inner, d_in), (d_out, inner)), strict=True):
            want = want[::-1] if turned else want
            if (got := header.shapes[key]) != want:
                raise AdapterError(
                    f"{header.folder}: {key} has shape {got}, but rank {module.rank} on this "
                    f"base's {name} {shapes[name]} needs {want}; another base, or a wrong r?"
                )


def read_adapter(
    folder: Path,
    shapes: Shapes,
    *,
    ignore_modules: Iterable[str] = (),
    base: Weights | None = None,
) -> Adapter:
    """The adapter in a PEFT folder, checked against the base it is meant for.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors, or MLX's files.
        shapes: of the base's weights, see `loratomy.core.model.subject.weight_shapes`.
        ignore_modules: names of stored modules that may be left out.
        base: the base's own parameters by name, for copies of them that are stored beside the
            factors (as PEFT does with a head or embedding).

    Raises:
        AdapterError: anything that keeps it from being exactly this adapter on this base.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header, ignore = check_folder(folder), frozenset(ignore_modules)
    beginnings = _beginnings(header, shapes, ignore)
    plan = _planned(header, shapes, ignore, beginnings)
    _check_shapes(header, plan, shapes)
    path = folder / header.weights
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise AdapterError(f"cannot read {path}: {error}; copy it again") from error
    copies = {unspelled(n, beginnings): tensors[k] for n, k in header.stored.copies.items()}
    copies = {name: copy for name, copy in copies.items() if not _ignored(name, ignore)}
    check_whole(folder, header.config.get("modules_to_save") or [], copies, ignore)
    check_copies(folder, copies, base)
    modules = {}
    for name, module in plan.items():
        a, b = (tensors[key].float() for key in module.keys)
        if header.stored.transposed:
            a, b = a.mT.contiguous(), b.mT.contiguous()
        for part, tensor in (("A", a), ("B", b)):
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"{folder}: lora_{part} of {name} holds NaN or infinite values")
        fused = len(shapes[name]) == 3
        modules[name] = Factors(*unpack(a, b, module.rank, fused=fused), module.scaling)
    return Adapter(modules, dict(header.config))


def unpack(
    a: torch.Tensor, b: torch.Tensor, rank: int, *, fused: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """PEFT's storage to factors: A is ``[expert * rank, in]``, B ``[out, rank * expert]``."""
    if not fused:
        return a, b
    a = rearrange(a, "(expert rank) d_in -> expert rank d_in", rank=rank)
    return a, rearrange(b, "d_out (rank expert) -> expert d_out rank", rank=rank)


def pack(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors to PEFT's storage; the inverse of how they are read."""
    if not factors.fused:
        return factors.a.contiguous(), factors.b.contiguous()
    a = rearrange(factors.a, "expert rank d_in -> (expert rank) d_in")
    b = rearrange(factors.b, "expert d_out rank -> d_out (rank expert)")
    return a.contiguous(), b.contiguous()


def live_rank(factors: Factors) -> int:
    """Directions with a factor that is not exactly zero; of fused experts the largest count."""
    return int(_live(factors).sum(-1).max())


def _live(factors: Factors) -> torch.Tensor:
    return (factors.a != 0).any(-1) | (factors.b != 0).any(-2)


def uniform(adapter: Adapter) -> tuple[int, float, dict[str, Factors]]:
    """One rank and scaling for all modules, dW unchanged: ``(rank, scaling, factors)``.

    Directions whose two factors are zero are dropped, the others come first, shorter modules are
    filled up with zeros. A direction of zeros gets no gradient: a cut stays cut under training.
    """
    factors = list(adapter.modules.values())
    rank = max(1, *(live_rank(f) for f in factors))
    scaling = max(f.scaling for f in factors)
    out = {}
    for name, f in adapter.modules.items():
        live = _live(f)
        order = live.int().argsort(dim=-1, descending=True, stable=True)
        a = torch.take_along_dim(f.a * live[..., None], order[..., None], -2)[..., :rank, :]
        b = torch.take_along_dim(f.b * live[..., None, :], order[..., None, :], -1)[..., :rank]
        a = torch.nn.functional.pad(a, (0, 0, 0, rank - a.shape[-2]))
        b = torch.nn.functional.pad(b, (0, rank - b.shape[-1])) * (f.scaling / scaling)
        out[name] = Factors(a, b, scaling)
    return rank, scaling, out


def filled(factors: Factors, rank: int) -> Factors:
    """The same dW with directions of zeros up to a rank."""
    more = rank - factors.rank
    pad = torch.nn.functional.pad
    return Factors(pad(factors.a, (0, 0, 0, more)), pad(factors.b, (0, more)), factors.scaling)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def write_adapter(adapter: Adapter, folder: Path, *, base: str) -> None:
    """Write a plain PEFT folder that `PeftModel.from_pretrained` loads as it is.

    Args:
        adapter: any ranks and scalings; written with the largest live rank (see `uniform`).
        folder: made if missing.
        base: value of ``base_model_name_or_path``.
    """
    from safetensors.torch import save_file

    rank, scaling, modules = uniform(adapter)
    keys, tensors = factor_keys(adapter), {}
    for name, factors in modules.items():
        for key, value in zip(keys[name], pack(factors), strict=True):
            tensors[f"{PREFIX}{key}"] = value
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _whole(scaling * rank),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": bool(adapter.config.get("fan_in_fan_out")),
        "init_lora_weights": True,
        "inference_mode": True,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": [n for n, f in modules.items() if not f.fused],
        "target_parameters": [n for n, f in modules.items() if f.fused] or None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    need_room(folder, sum(tensor.nbytes for tensor in tensors.values()))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
