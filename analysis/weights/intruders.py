"""Intruder dimensions: strong singular vectors of W + dW that are unlike all those of W."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field

from ...core.adapter.algebra import svd
from ...core.adapter.factors import Adapter, Factors
from ...core.config import Config
from ...core.errors import AdapterError
from ...core.progress import tracked
from ...core.records.spectra import Intruders
from ..analyses import ANALYSES, Analysis
from ..material import Material
from .spectra import base_weight, expanded, names_and_layers
from .topsvd import (
    Triplets,
    all_triplets,
    changed,
    column_part,
    largest_cosine_bound,
    strongest,
)

MIXED = 0.9
"""Length inside W's strongest vectors from which the sentence speaks of mixtures."""


class IntrudersConfig(Config):
    """Options of the search for intruder dimensions."""

    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Cosine below which a vector is an intruder."""
    k: int = Field(default=10, ge=1, le=256)
    """Strongest vectors of W + dW looked at."""
    reference: int = Field(default=32, ge=2, le=512)
    """Strongest vectors of W to compare with one by one, at least k where W is large."""
    exact_below: int = Field(default=1024, ge=0)
    """Weights whose smaller side is at most this are decomposed in full."""
    steps: int = Field(default=64, ge=8, le=512)
    """Lanczos steps behind the upper bounds of the cosines in larger weights."""
    settle: bool = True
    """Decompose a larger weight in full if the bounds leave a vector undecided."""

    def small(self, w: torch.Tensor) -> bool:
        """Whether a weight is decomposed in full from the start."""
        return min(w.shape) <= max(self.exact_below, self.reference + 1, self.k + 1)


@dataclass(frozen=True, slots=True)
class _Base:
    """What is known of one base weight."""

    w: torch.Tensor
    known: Triplets
    """All triplets, or the strongest."""
    method: str
    """``exact``, ``settled`` or ``lanczos``, as in the record."""


@dataclass(frozen=True, slots=True)
class _Row:
    """What is found in one module of one adapter, ``[k]`` each."""

    s: torch.Tensor
    base: torch.Tensor
    cosine: torch.Tensor
    upper: torch.Tensor
    inside: torch.Tensor
    origin: torch.Tensor
    origin_cosine: torch.Tensor
    residual: float
    method: str

    def open(self, threshold: float) -> torch.Tensor:
        """Vectors with the threshold between their bounds."""
        return (self.cosine < threshold) & (self.upper >= threshold)


def _base(weight: torch.Tensor, config: IntrudersConfig, seed: int) -> _Base:
    w = weight.float()
    if config.small(w):
        return _Base(w, all_triplets(w), "exact")
    return _Base(w, strongest(w, max(config.reference, config.k), seed=seed), "lanczos")


def _row(base: _Base, change: Factors, config: IntrudersConfig, seed: int) -> _Row:
    m = changed(base.w, change)
    found = all_triplets(m) if config.small(base.w) else strongest(m, config.k, seed=seed)
    u, s = found.u[:, : config.k], found.s[: config.k]
    overlap = base.known.u.mT @ u  # [known, k]
    cosine = overlap.abs().max(dim=0).values.double().clamp(max=1)
    upper = cosine
    if base.method == "lanczos":
        upper = _upper(base, u - base.known.u @ overlap, cosine, config)
    own = svd(change)
    live = own.u[:, own.s > 0]
    origin, nearest = torch.full((len(s),), -1), torch.full((len(s),), torch.nan)
    if live.shape[1]:
        own_cosine = (live.mT @ u.double().cpu()).abs().max(dim=0)
        origin, nearest = own_cosine.indices, own_cosine.values.clamp(max=1)
    return _Row(
        s=s.cpu(),
        base=base.known.s[: len(s)].cpu(),
        cosine=cosine.cpu(),
        upper=upper.cpu(),
        inside=_inside(overlap, config.reference, min(base.w.shape)).cpu(),
        origin=origin,
        origin_cosine=nearest,
        residual=max(base.known.residual, found.residual),
        method=base.method,
    )


def _inside(overlap: torch.Tensor, reference: int, vectors: int) -> torch.Tensor:
    """Length inside the span of W's `reference` strongest; NaN where W has no more than those."""
    length = overlap[:reference].norm(dim=0).clamp(max=1)
    return length if vectors > reference else torch.full_like(length, torch.nan)


def _upper(
    base: _Base, rest: torch.Tensor, cosine: torch.Tensor, config: IntrudersConfig
) -> torch.Tensor:
    """Upper bounds of the largest cosines, ``[k]``, sharp only where the threshold asks for it.

    Args:
        base: its strongest left vectors gave `cosine`, ``[k]``.
        rest: what is left of the vectors outside those, ``[d_out, k]``.
    """
    upper = torch.maximum(cosine, rest.norm(dim=0).double())
    near = (cosine < config.threshold) & (upper >= config.threshold)
    if near.any():
        inside = column_part(base.w, rest[:, near])
        bound = largest_cosine_bound(base.w, inside, steps=config.steps)
        upper[near] = torch.maximum(cosine[near], torch.minimum(upper[near], bound))
    return upper


def intruders(
    base: Any,
    adapters: Mapping[str, Adapter],
    *,
    config: IntrudersConfig | None = None,
    seed: int = 0,
) -> dict[str, Intruders]:
    """The intruder dimensions of each adapter, module by module (Shuttleworth et al. 2024).

    One of the k strongest left singular vectors of W + dW is an intruder when its cosine with
    every left singular vector of W stays below the threshold. Small weights are decomposed in
    full. Of larger ones the `reference` strongest vectors give the lower bound of the largest
    cosine; what is left of the vector is bounded by `largest_cosine_bound`, so that a vector is
    called an intruder only when no singular vector of W can reach the threshold; weights where
    that leaves a vector open are decomposed in full after all. Everything is in float32, one
    weight at a time, on the device where the weights are.

    Args:
        base: the base model, without adapter.
        adapters: name -> adapter, e.g. poisoned and clean; each W is decomposed once for all.
        config: threshold, numbers of vectors, and from where on weights are large.
        seed: of the start vectors.

    Raises:
        AdapterError: no adapter was given.
        LoratomyError: a base weight is missing, of another shape or not finite.
    """
    config = config or IntrudersConfig()
    if not adapters:
        raise AdapterError("no adapter was given to look for intruder dimensions")
    parts = {name: expanded(adapter) for name, adapter in adapters.items()}
    modules = list(dict.fromkeys(n for changes in parts.values() for n in changes))
    rows: dict[str, dict[str, _Row]] = {name: {} for name in parts}
    with torch.inference_mode():
        for module in tracked(modules, "intruders"):
            having = {n: changes[module] for n, changes in parts.items() if module in changes}
            weight = base_weight(base, module, next(iter(having.values())))
            known = _base(weight, config, seed)
            for change in having.values():
                base_weight(base, module, change)  # each must fit
            for name, row in _rows(known, having, config, seed).items():
                rows[name][module] = row
    return {name: _record(name, found, config) for name, found in rows.items()}


def _rows(
    base: _Base, changes: Mapping[str, Factors], config: IntrudersConfig, seed: int
) -> dict[str, _Row]:
    """One module of every adapter, W decomposed in full where the bounds were not enough."""
    found = {name: _row(base, change, config, seed) for name, change in changes.items()}
    if config.settle and any(row.open(config.threshold).any() for row in found.values()):
        whole = _Base(base.w, all_triplets(base.w), "settled")
        return {name: _row(whole, change, config, seed) for name, change in changes.items()}
    return found


def _wide(rows: list[torch.Tensor], k: int, fill: float) -> np.ndarray:
    out = np.full((len(rows), k), fill)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row.double().numpy()
    return out


def _sentence(
    adapter: str, odd: np.ndarray, mixed: np.ndarray, there: np.ndarray, undecided: np.ndarray
) -> str:
    return (
        f"{int(odd.sum())} of the {int(there.sum())} strongest left singular vectors of W + dW "
        f"({adapter}) are unlike all of W's, in {int(odd.any(1).sum())} of {len(odd)} modules; "
        f"{int(mixed.sum())} of them lie nevertheless in the span of W's strongest, as mixtures of "
        f"them. {int(undecided.sum())} are undecided."
    )


def _record(adapter: str, found: Mapping[str, _Row], config: IntrudersConfig) -> Intruders:
    names, kinds, layers = names_and_layers(list(found))
    rows, k = list(found.values()), config.k
    cosine = _wide([r.cosine for r in rows], k, np.nan)
    upper = _wide([r.upper for r in rows], k, np.nan)
    values = _wide([r.s for r in rows], k, np.nan)
    odd = (upper < config.threshold) & (values > 0)
    inside = _wide([r.inside for r in rows], k, np.nan)
    undecided = np.array([int(r.open(config.threshold).sum()) for r in rows])
    methods = tuple(r.method for r in rows)
    residual = np.array([r.residual for r in rows])
    sentence = _sentence(adapter, odd, odd & (inside >= MIXED), np.isfinite(values), undecided)
    bounded = methods.count("lanczos")
    sentence += (
        f" {len(rows) - bounded} weights were decomposed in full, {bounded} by Lanczos with "
        f"quadrature bounds; largest relative residual {residual.max(initial=0.0):.1g}."
    )
    return Intruders(
        adapter=adapter,
        modules=names,
        kinds=kinds,
        layers=layers,
        singular_values=values,
        base_values=_wide([r.base for r in rows], k, np.nan),
        cosine=cosine,
        cosine_upper=upper,
        inside=inside,
        origin=_wide([r.origin for r in rows], k, -1).astype(int),
        origin_cosine=_wide([r.origin_cosine for r in rows], k, np.nan),
        intruders=odd.sum(1),
        undecided=undecided,
        residual=residual,
        methods=methods,
        threshold=config.threshold,
        k=k,
        reference=config.reference,
        sentence=sentence,
    )


def _run(material: Material, config: IntrudersConfig) -> dict[str, Intruders]:
    model = material.subject.model
    return intruders(model, material.adapters, config=config, seed=material.seed)


ANALYSES.register("intruders")(
    Analysis(
        about="Strong singular vectors of the changed weights that are unlike all of the base's.",
        cost="on one CPU core 5 s a weight of 3072 x 3072, 20 s more where bounds leave it open",
        source="Shuttleworth et al. 2024, arXiv 2410.21228",
        config=IntrudersConfig,
        run=_run,
    )
)
