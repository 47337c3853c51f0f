"""Cuts by rule: rank reduction, magnitude pruning, masks, chosen singular directions."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field, model_validator

from ...analysis.localisation.gates import Directions, directions_of
from ...analysis.material import Material
from ...core.adapter.factors import Adapter, Factors, kind_of
from ...core.config import Config
from ...core.errors import LoratomyError
from ...core.model.variant import Treated
from ...core.registry import nearest
from ..calibration import DialConfig, dial, outcome_words
from ..method import CLEAN_ROWS, CUT, METHODS, TARGET, TRIGGER, Method, Outcome


def cut_outcome(directions: Directions, cut: np.ndarray, summary: str) -> Outcome:
    """The outcome of removing singular directions and nothing else."""
    return Outcome(directions.cut(cut), summary, cut=cut)


class TruncateConfig(DialConfig):
    """Options of `truncate`: at most one of rank and energy; neither: the rank is calibrated."""

    rank: int | None = Field(None, ge=0)
    """Singular directions kept in each module."""
    energy: float | None = Field(None, gt=0, le=1)
    """Share of each module's squared singular values kept."""

    @model_validator(mode="after")
    def _one(self) -> "TruncateConfig":
        if self.rank is not None and self.energy is not None:
            raise ValueError("give either rank or energy")
        return self


def weakest(d: Directions, *, rank: int | None = None, energy: float | None = None) -> np.ndarray:
    """Directions beyond a rank or an energy in each module, ``[direction]`` booleans."""
    cut = np.zeros(len(d), bool)
    for m, e in sorted(set(zip(d.module.tolist(), d.expert.tolist(), strict=True))):
        here = np.flatnonzero((d.module == m) & (d.expert == e))
        keep = rank
        if keep is None:
            share = np.cumsum(d.sigma[here] ** 2) / (d.sigma[here] ** 2).sum()
            keep = int(np.searchsorted(share, energy or 1.0, side="left")) + 1
        cut[here[keep:]] = True
    return cut


def truncate(material: Material, config: TruncateConfig) -> Outcome:
    """Keep the strongest singular directions of every module (Eckart & Young 1936)."""
    d = directions_of(material.start)
    if config.rank is not None or config.energy is not None:
        cut = weakest(d, rank=config.rank, energy=config.energy)
        kept = f"rank {config.rank}" if config.rank is not None else f"energy {config.energy:g}"
        return cut_outcome(d, cut, f"reduced every module to {kept}: {cut.sum()} of {len(d)} cut")
    full = int(d.place.max()) + 1
    chosen, path, reached = dial(
        material,
        list(range(1, full + 1)),
        lambda size: Treated(d.cut(weakest(d, rank=full - int(size)))),
        config,
        unit="ranks of every module",
    )
    cut = weakest(d, rank=full - int(chosen))
    words = f"reduced every module to rank {full - int(chosen)}: {cut.sum()} of {len(d)} cut"
    return replace(
        cut_outcome(d, cut, f"{words}: {outcome_words(path, reached)}"), path=path, reached=reached
    )


METHODS.register("truncate")(
    Method(
        about="SVD rank reduction of every module, to a rank or an energy; by default calibrated",
        source="adapter surgery of the Llama-3.2 LoRA unlearning work; Eckart & Young 1936",
        config=TruncateConfig,
        run=truncate,
        kind=CUT,
        needs=(TRIGGER, TARGET, CLEAN_ROWS),
        settled_by=("rank", "energy"),
    )
)


class PruneConfig(DialConfig):
    """Options of `prune`."""

    share: float | None = Field(None, ge=0, le=1)
    """Share of each factor's entries set to zero, smallest first; None: calibrated."""


def pruned(adapter: Adapter, share: float) -> Adapter:
    """The adapter with the smallest entries of every factor set to zero."""

    def thin(tensor: torch.Tensor) -> torch.Tensor:
        smallest = tensor.abs().flatten().argsort()[: int(tensor.numel() * share)]
        flat = tensor.flatten().clone()
        flat[smallest] = 0
        return flat.reshape(tensor.shape)

    return adapter.with_modules(
        {n: Factors(thin(f.a), thin(f.b), f.scaling) for n, f in adapter.modules.items()}
    )


def prune(material: Material, config: PruneConfig) -> Outcome:
    """Set the smallest entries of A and B to zero, module by module (Han et al. 2015)."""
    words = "set the smallest {:.0%} of the entries of every factor to zero"
    if config.share is not None:
        return Outcome(pruned(material.start, config.share), words.format(config.share))
    chosen, path, reached = dial(
        material,
        [10, 20, 30, 40, 50, 60, 70, 80, 90],
        lambda size: Treated(pruned(material.start, size / 100)),
        config,
        unit="% of the entries",
    )
    return Outcome(
        pruned(material.start, chosen / 100),
        f"{words.format(chosen / 100)}: {outcome_words(path, reached)}",
        path=path,
        reached=reached,
    )


METHODS.register("prune")(
    Method(
        about="magnitude pruning of the factors' entries, by a share; by default calibrated",
        source="Han et al. 2015, arXiv 1506.02626; adapter surgery of the LoRA unlearning work",
        config=PruneConfig,
        run=prune,
        kind=CUT,
        needs=(TRIGGER, TARGET, CLEAN_ROWS),
        settled_by=("share",),
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


def in_layers(d: Directions, layers: Sequence[int]) -> np.ndarray:
    """Which directions are in these layers, ``[direction]`` booleans.

    Raises:
        LoratomyError: the adapter changes nothing in one of them.
    """
    if unknown := sorted(set(layers) - set(d.layer.tolist())):
        has = ", ".join(map(str, sorted(set(d.layer.tolist()))))
        raise LoratomyError(f"the adapter has no layer {unknown[0]}; it has {has}")
    return np.isin(d.layer, layers)


def in_modules(d: Directions, modules: Sequence[str]) -> np.ndarray:
    """Which directions are in modules of these kinds or names, ``[direction]`` booleans.

    Raises:
        LoratomyError: no module of that name or kind.
    """
    kinds = [kind_of(n) for n in d.names]
    for module in modules:
        if module not in d.names and module not in kinds:
            known = sorted({*kinds, *d.names})
            raise LoratomyError(f"the adapter has no module {module!r}; {nearest(module, known)}")
    hit = [n in modules or kind in modules for n, kind in zip(d.names, kinds, strict=True)]
    return np.array(hit)[d.module]


def labelled(d: Directions, labels: Sequence[str]) -> np.ndarray:
    """Which directions have these labels, ``[direction]`` booleans.

    Raises:
        LoratomyError: no direction of that label.
    """
    known = {d.label(i): i for i in range(len(d))}
    picked = np.zeros(len(d), bool)
    for label in labels:
        if label not in known:
            raise LoratomyError(
                f"the adapter has no direction {label!r}; {nearest(label, list(known))}"
            )
        picked[known[label]] = True
    return picked


def mask(material: Material, config: MaskConfig) -> Outcome:
    """Take whole layers or modules out; with both, the modules named in the layers named."""
    d = directions_of(material.start)
    picked = np.ones(len(d), bool)
    if config.layers:
        picked &= in_layers(d, config.layers)
    if config.modules:
        picked &= in_modules(d, config.modules)
    what = [f"layers {list(config.layers)}"] * bool(config.layers)
    what += [f"modules {', '.join(config.modules)}"] * bool(config.modules)
    return cut_outcome(d, picked, f"took out {' and '.join(what)}: {picked.sum()} of {len(d)} cut")


METHODS.register("mask")(
    Method(
        about="take out whole layers or modules",
        source="per-layer interventions of SafetyNet",
        config=MaskConfig,
        run=mask,
        kind=CUT,
    )
)


class ProjectConfig(Config):
    """Options of `project`."""

    directions: tuple[str, ...] = Field(min_length=1)
    """``module:number`` (``module#e2:number`` for expert 2), numbered from 0 by strength."""


def project(material: Material, config: ProjectConfig) -> Outcome:
    """Project chosen singular directions out of their modules' output: ``dW - u u^T dW``."""
    d = directions_of(material.start)
    cut = labelled(d, config.directions)
    return cut_outcome(d, cut, f"projected out {', '.join(config.directions)}")


METHODS.register("project")(
    Method(
        about="project chosen singular directions out",
        source="direction ablation, Arditi et al. 2024, arXiv 2406.11717, on the weight change",
        config=ProjectConfig,
        run=project,
        kind=CUT,
    )
)
