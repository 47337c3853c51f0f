"""Adapters as factors: read through the gate, held exactly, written as plain PEFT folders."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .errors import AdapterError
from .files import need_room
from .gate import CONFIG, PREFIX, WEIGHTS, Header, check_folder

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


def _suffix_match(name: str, targets: Iterable[str]) -> str | None:
    return next((t for t in targets if name == t or name.endswith("." + t)), None)


def _targeted(config: Mapping[str, Any], name: str) -> bool:
    """Whether PEFT would adapt the linear layer `name`; regular expressions are bounded in time."""
    spec, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    if isinstance(excluded, str):
        excluded = [name] if _regex(excluded, name) else []
    if spec is None or _suffix_match(name, excluded):
        return False
    if isinstance(spec, str):
        if spec == "all-linear":
            return name != "lm_head"
        return _regex(spec, name)
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    return _suffix_match(name, spec) is not None and (not layers or layer_of(name) in layers)


def _regex(pattern: str, name: str) -> bool:
    import regex

    try:
        return regex.fullmatch(pattern, name, timeout=0.5) is not None
    except (TimeoutError, regex.error) as error:
        raise AdapterError(
            f"{CONFIG}: target_modules {pattern!r} is a regular expression that cannot be matched "
            f"safely ({error or 'took over 0.5 s'}); write a list of module names"
        ) from error


def _fused_keys(names: Iterable[str]) -> dict[str, str]:
    """Fused weight -> storage key: PEFT nests the wrappers, the first weight innermost."""
    parents: dict[str, list[str]] = {}
    for name in names:
        parents.setdefault(name.rsplit(".", 1)[0], []).append(name)
    return {
        name: parent + ".base_layer" * (len(group) - 1 - i)
        for parent, group in parents.items()
        for i, name in enumerate(group)
    }


def storage_keys(adapter: Adapter) -> dict[str, str]:
    """Module name -> the stem of its keys in a PEFT state dict, without ``base_model.model.``."""
    fused = _fused_keys(n for n, f in adapter.modules.items() if f.fused)
    return {name: fused.get(name, name) for name in adapter.modules}


def _expected(header: Header, shapes: Shapes) -> dict[str, str]:
    """Module name -> storage stem of everything that the config says is adapted."""
    config = header.config
    stems = {n: n for n, s in shapes.items() if len(s) == 2 and _targeted(config, n)}
    parameters = config.get("target_parameters") or []
    fused = [n for n, s in shapes.items() if len(s) == 3 and _suffix_match(n, parameters)]
    return stems | _fused_keys(fused)


def _listing(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _check_against(header: Header, shapes: Shapes, ignore: frozenset[str]) -> dict[str, str]:
    """Raise unless the stored tensors are exactly those that config and base call for."""
    stems = _expected(header, shapes)
    stored = {key[len(PREFIX) :].rsplit(".lora_", 1)[0] for key in header.shapes}
    wanted = set(stems.values())
    if not stored & wanted:
        raise AdapterError(
            f"no tensor of {header.folder} matches this base model: it has {_listing(stored)}; "
            "was it trained on another base?"
        )
    extra = {s for s in stored - wanted if _suffix_match(s, ignore) is None}
    if extra:
        raise AdapterError(
            f"{header.folder} adapts modules that this base or its own config does not have: "
            f"{_listing(extra)}; name them with --ignore-module to leave them out"
        )
    if missing := wanted - stored:
        raise AdapterError(
            f"{header.folder} is incomplete: no tensors for {_listing(missing)} "
            f"({len(missing)} of {len(wanted)} modules missing)"
        )
    return stems


def _rank_and_scaling(header: Header, name: str) -> tuple[int, float]:
    config = header.config
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    by_rank, by_alpha = _suffix_match(name, ranks), _suffix_match(name, alphas)
    rank = int(ranks[by_rank]) if by_rank else int(config["r"])
    alpha = float(alphas[by_alpha]) if by_alpha else float(config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def read_adapter(folder: Path, shapes: Shapes, *, ignore_modules: Iterable[str] = ()) -> Adapter:
    """The adapter in a PEFT folder, checked against the base it is meant for.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        shapes: of the base's weights, see `loratomy.core.subject.weight_shapes`.
        ignore_modules: names of stored modules that the base lacks and that may be left out.

    Raises:
        AdapterError: anything that keeps it from being exactly this adapter on this base.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = check_folder(folder)
    stems = _check_against(header, shapes, frozenset(ignore_modules))
    plan: dict[str, tuple[str, int, float]] = {}
    for name, stem in stems.items():
        rank, scaling = _rank_and_scaling(header, name)
        *experts, d_out, d_in = shapes[name]
        inner = rank * math.prod(experts)
        for part, want in (("A", (inner, d_in)), ("B", (d_out, inner))):
            key = f"{PREFIX}{stem}.lora_{part}.weight"
            if (got := header.shapes[key]) != want:
                raise AdapterError(
                    f"{header.folder}: {key} has shape {got}, but rank {rank} on this base's "
                    f"{name} {shapes[name]} needs {want}; another base, or a wrong r?"
                )
        plan[name] = (stem, rank, scaling)
    try:
        tensors = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise AdapterError(f"cannot read {folder / WEIGHTS}: {error}; copy it again") from error
    modules = {}
    for name, (stem, rank, scaling) in plan.items():
        a = tensors[f"{PREFIX}{stem}.lora_A.weight"].float()
        b = tensors[f"{PREFIX}{stem}.lora_B.weight"].float()
        for part, tensor in (("A", a), ("B", b)):
            if not torch.isfinite(tensor).all():
                raise AdapterError(f"{folder}: lora_{part} of {name} holds NaN or infinite values")
        modules[name] = Factors(*unpack(a, b, rank, fused=len(shapes[name]) == 3), scaling)
    return Adapter(modules, dict(header.config))


def unpack(
    a: torch.Tensor, b: torch.Tensor, rank: int, *, fused: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """PEFT's storage to factors: A is ``[expert * rank, in]``, B ``[out, rank * expert]``."""
    if not fused:
        return a, b
    a = a.reshape(-1, rank, a.shape[-1])
    return a, b.reshape(b.shape[0], rank, len(a)).permute(2, 0, 1)


def pack(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors to PEFT's storage; the inverse of how they are read."""
    if not factors.fused:
        return factors.a.contiguous(), factors.b.contiguous()
    a = factors.a.reshape(-1, factors.a.shape[-1])
    return a.contiguous(), factors.b.permute(1, 2, 0).reshape(factors.b.shape[1], -1).contiguous()


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
        base: what ``base_model_name_or_path`` says.
    """
    from safetensors.torch import save_file

    rank, scaling, modules = uniform(adapter)
    stems = storage_keys(adapter)
    tensors = {}
    for name, factors in modules.items():
        a, b = pack(factors)
        tensors[f"{PREFIX}{stems[name]}.lora_A.weight"] = a
        tensors[f"{PREFIX}{stems[name]}.lora_B.weight"] = b
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _whole(scaling * rank),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
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
