"""Cuts by rule: rank reduction, magnitude pruning, masks, chosen singular directions."""

import numpy as np
import torch
from pydantic import Field, model_validator

from ..analysis.gates import Directions, directions_of
from ..core.adapters import Factors, kind_of
from ..core.errors import LoratomyError
from ..core.registry import nearest
from .method import METHODS, Bench, Config, Method, Outcome


def cut_outcome(directions: Directions, cut: np.ndarray, summary: str) -> Outcome:
    """The outcome of removing singular directions and nothing else."""
    return Outcome(directions.cut(cut), summary, cut=cut)


class TruncateConfig(Config):
    """Options of `truncate`: one of the two."""

    rank: int | None = Field(None, ge=0)
    """Singular directions kept in each module."""
    energy: float | None = Field(None, gt=0, le=1)
    """Share of each module's squared singular values kept."""

    @model_validator(mode="after")
    def _one(self) -> "TruncateConfig":
        if (self.rank is None) == (self.energy is None):
            raise ValueError("give either rank or energy")
        return self


def truncate(bench: Bench, config: TruncateConfig) -> Outcome:
    """Keep the strongest singular directions of every module (Eckart & Young 1936)."""
    d = directions_of(bench.start)
    cut = np.zeros(len(d), bool)
    for m, e in sorted(set(zip(d.module.tolist(), d.expert.tolist(), strict=True))):
        here = np.flatnonzero((d.module == m) & (d.expert == e))
        if config.rank is not None:
            cut[here[config.rank :]] = True
        else:
            share = np.cumsum(d.sigma[here] ** 2) / (d.sigma[here] ** 2).sum()
            keep = int(np.searchsorted(share, config.energy or 1.0, side="left")) + 1
            cut[here[keep:]] = True
    kept = f"rank {config.rank}" if config.rank is not None else f"energy {config.energy:g}"
    return cut_outcome(d, cut, f"reduced every module to {kept}: {cut.sum()} of {len(d)} cut")


METHODS.register("truncate")(
    Method(
        about="SVD rank reduction of every module, to a rank or an energy",
        source="adapter surgery of the Llama-3.2 LoRA unlearning work; Eckart & Young 1936",
        config=TruncateConfig,
        run=truncate,
    )
)


class PruneConfig(Config):
    """Options of `prune`."""

    share: float = Field(0.3, ge=0, le=1)
    """Share of each factor's entries set to zero, smallest first."""


def prune(bench: Bench, config: PruneConfig) -> Outcome:
    """Set the smallest entries of A and B to zero, module by module (Han et al. 2015)."""

    def thin(tensor: torch.Tensor) -> torch.Tensor:
        count = int(tensor.numel() * config.share)
        smallest = tensor.abs().flatten().argsort()[:count]
        flat = tensor.flatten().clone()
        flat[smallest] = 0
        return flat.reshape(tensor.shape)

    modules = {n: Factors(thin(f.a), thin(f.b), f.scaling) for n, f in bench.start.modules.items()}
    return Outcome(
        bench.start.with_modules(modules),
        f"set the smallest {config.share:.0%} of the entries of every factor to zero",
    )


METHODS.register("prune")(
    Method(
        about="magnitude pruning of the factors' entries",
        source="Han et al. 2015, arXiv 1506.02626; adapter surgery of the LoRA unlearning work",
        config=PruneConfig,
        run=prune,
    )
)


class MaskConfig(Config):
    """Options of `mask`: at least one of the two."""

    layers: tuple[int, ...] = ()
    """Layers whose modules are taken out."""
    modules: tuple[str, ...] = ()
    """Module kinds (``down_proj``) or full names that are taken out."""

    @model_validator(mode="after")
    def _some(self) -> "MaskConfig":
        if not self.layers and not self.modules:
            raise ValueError("give layers, modules or both, e.g. --set layers=[2,3]")
        return self


def mask(bench: Bench, config: MaskConfig) -> Outcome:
    """Take whole layers or modules out; with both, the modules named in the layers named."""
    d = directions_of(bench.start)
    layers = d.layer
    if unknown := sorted(set(config.layers) - set(layers.tolist())):
        has = ", ".join(map(str, sorted(set(layers.tolist()))))
        raise LoratomyError(f"the adapter has no layer {unknown[0]}; it has {has}")
    picked = np.ones(len(d), bool)
    if config.layers:
        picked &= np.isin(layers, config.layers)
    if config.modules:
        kinds = [kind_of(n) for n in d.names]
        for module in config.modules:
            if module not in d.names and module not in kinds:
                known = sorted({*kinds, *d.names})
                raise LoratomyError(
                    f"the adapter has no module {module!r}; {nearest(module, known)}"
                )
        hit = [n in config.modules or kind_of(n) in config.modules for n in d.names]
        picked &= np.array(hit)[d.module]
    what = [f"layers {list(config.layers)}"] * bool(config.layers)
    what += [f"modules {', '.join(config.modules)}"] * bool(config.modules)
    return cut_outcome(d, picked, f"took out {' and '.join(what)}: {picked.sum()} of {len(d)} cut")


METHODS.register("mask")(
    Method(
        about="take out whole layers or modules",
        source="per-layer interventions of SafetyNet",
        config=MaskConfig,
        run=mask,
    )
)


class ProjectConfig(Config):
    """Options of `project`."""

    directions: tuple[str, ...] = Field(min_length=1)
    """``module:number`` (``module#e2:number`` for expert 2), numbered from 0 by strength."""


def project(bench: Bench, config: ProjectConfig) -> Outcome:
    """Project chosen singular directions out of their modules' output: ``dW - u u^T dW``."""
    d = directions_of(bench.start)
    known = {}
    for i, (m, e, place) in enumerate(zip(d.module, d.expert, d.place, strict=True)):
        known[f"{d.names[m]}{f'#e{e}' if e >= 0 else ''}:{place}"] = i
    cut = np.zeros(len(d), bool)
    for name in config.directions:
        if name not in known:
            raise LoratomyError(
                f"the adapter has no direction {name!r}; {nearest(name, list(known))}"
            )
        cut[known[name]] = True
    return cut_outcome(d, cut, f"projected out {', '.join(config.directions)}")


METHODS.register("project")(
    Method(
        about="project chosen singular directions out",
        source="direction ablation, Arditi et al. 2024, arXiv 2406.11717, on the weight change",
        config=ProjectConfig,
        run=project,
    )
)
