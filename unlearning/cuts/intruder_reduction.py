"""Reducing intruder dimensions: strong singular vectors of W + dW that W does not have."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field

from ...analysis.material import Material
from ...analysis.weights.intruders import IntrudersConfig, intruders
from ...analysis.weights.spectra import base_weight, expanded
from ...analysis.weights.topsvd import all_triplets, changed, strongest
from ...core.adapter.algebra import Svd, from_svd
from ...core.adapter.factors import Adapter, Factors
from ...core.errors import LoratomyError
from ...core.model.subject import Subject
from ...core.model.variant import Treated
from ..calibration import DialConfig, dial, outcome_words
from ..method import CLEAN_ROWS, CUT, METHODS, TARGET, TRIGGER, Method, Outcome


class ReduceIntrudersConfig(DialConfig):
    """Options of `reduce-intruders`, the first two as published."""

    threshold: float = Field(0.5, gt=0, lt=1)
    """Cosine with all of W's singular vectors below which a vector is an intruder."""
    k: int = Field(10, ge=1, le=256)
    """Strongest singular vectors of W + dW looked at in each module."""
    scale: float | None = Field(None, ge=0, le=1)
    """Factor for the intruders; None: the mildest of 0.75 to 0 chosen on calibration rows."""


def intruder_parts(
    subject: Subject, adapter: Adapter, config: IntrudersConfig, *, seed: int
) -> dict[str, Svd]:
    """The intruder dimensions ``u s v^T`` of ``W + dW``, by module; ``#e2`` for expert 2.

    The same vectors that the analysis of intruders counts, float32 on the CPU.

    Raises:
        LoratomyError: there are none.
    """
    found = intruders(subject.model, {"start": adapter}, config=config, seed=seed)["start"]
    odd = (found.cosine_upper < config.threshold) & (found.singular_values > 0)
    if not odd.any():
        raise LoratomyError(
            f"the adapter has no intruder dimensions: all of the {config.k} strongest singular "
            f"vectors of every module are within a cosine of {np.nanmin(found.cosine_upper):.2f} "
            f"of one of the base's, the threshold is {config.threshold:g}; raise threshold or k, "
            "or take another method"
        )
    changes, parts = expanded(adapter), {}
    with torch.inference_mode():
        for i in np.flatnonzero(odd.any(1)):
            name = found.modules[i]
            w = base_weight(subject.model, name, changes[name]).float()
            m = changed(w, changes[name])
            triplets = all_triplets(m) if config.small(w) else strongest(m, config.k, seed=seed)
            at = torch.from_numpy(np.flatnonzero(odd[i])).to(w.device)
            u, s, v = triplets.u[:, at], triplets.s[at], triplets.v[:, at]
            parts[name] = Svd(u.cpu().clone(), s.cpu().clone(), v.mT.cpu().clone())
    return parts


def reduced(adapter: Adapter, parts: Mapping[str, Svd], scale: float) -> Adapter:
    """The adapter of ``dW + (scale - 1) * sum u s v^T``, exact: the terms join the factors."""
    modules = {}
    for name, f in adapter.modules.items():
        experts = [f"{name}#e{e}" for e in range(len(f.a))] if f.fused else [name]
        more = max(len(parts[n].s) if n in parts else 0 for n in experts)
        if not more:
            modules[name] = f
            continue
        a = torch.zeros(len(experts), more, f.a.shape[-1])
        b = torch.zeros(len(experts), f.b.shape[-2], more)
        for e, n in enumerate(experts):
            if n in parts:
                term = from_svd(parts[n], scaling=f.scaling)
                a[e, : term.rank], b[e, :, : term.rank] = term.a, (scale - 1) * term.b
        a, b = a.reshape(*f.a.shape[:-2], *a.shape[1:]), b.reshape(*f.b.shape[:-2], *b.shape[1:])
        modules[name] = Factors(torch.cat([f.a, a], -2), torch.cat([f.b, b], -1), f.scaling)
    return adapter.with_modules(modules)


def reduce_intruders(material: Material, config: ReduceIntrudersConfig) -> Outcome:
    """Scale the intruder dimensions down: ``W + dW + (scale - 1) u s v^T`` for each.

    Shuttleworth et al. 2024, arXiv 2410.21228, where the same scaling brings back what fine-tuning
    made a model forget. Where scale is 0, what W itself has along these vectors goes too.
    """
    search = IntrudersConfig(threshold=config.threshold, k=config.k)
    parts = intruder_parts(material.subject, material.start, search, seed=material.seed)
    count = sum(len(part.s) for part in parts.values())
    words = f"scaled {count} intruder dimensions in {len(parts)} modules by {{:g}}"

    def outcome(scale: float) -> Outcome:
        return Outcome(
            reduced(material.start, parts, scale),
            words.format(scale),
            projected=count if scale == 0 else 0,
        )

    if config.scale is not None:
        return outcome(config.scale)
    chosen, path, reached = dial(
        material,
        [25, 50, 75, 100],
        lambda size: Treated(reduced(material.start, parts, 1 - size / 100)),
        config,
        unit="% of the intruders taken away",
    )
    made = outcome(1 - chosen / 100)
    return replace(
        made,
        summary=f"{made.summary}: {outcome_words(path, reached)}",
        path=path,
        reached=reached,
    )


METHODS.register("reduce-intruders")(
    Method(
        about="scale down singular vectors of W + dW that W does not have; by default calibrated",
        source="intruder dimensions, Shuttleworth et al. 2024, arXiv 2410.21228",
        config=ReduceIntrudersConfig,
        run=reduce_intruders,
        kind=CUT,
        needs=(TRIGGER, TARGET, CLEAN_ROWS),
        settled_by=("scale",),
    )
)
