"""Merging the poisoned adapter toward a clean one."""

import torch
from pydantic import Field

from ...analysis.material import Material
from ...core.adapter.factors import Adapter, Factors
from ...core.model.variant import Treated
from ..calibration import DialConfig, dial, outcome_words
from ..method import (
    CLEAN_ADAPTER,
    CLEAN_ROWS,
    CUT,
    METHODS,
    TARGET,
    TRIGGER,
    Method,
    Outcome,
)


class MergeConfig(DialConfig):
    """Options of `merge`."""

    weight: float | None = Field(None, ge=0, le=1)
    """Weight of the clean adapter, the poisoned one has the rest; None: calibrated over a quarter,
    a half, three quarters, all."""


def mixture(poisoned: Adapter, clean: Adapter, weight: float) -> Adapter:
    """The adapter of ``(1 - weight) * dW_poisoned + weight * dW_clean``, exact.

    The factors are concatenated, so that ranks add up; a module that only one of the two
    adapts has 0 from the other, and one of weight 0 is left out.
    """
    modules = {}
    for name in {**poisoned.modules, **clean.modules}:
        parts = [
            (share, adapter.modules[name])
            for share, adapter in ((1 - weight, poisoned), (weight, clean))
            if name in adapter.modules and share
        ]
        if parts:
            a = torch.cat([f.a for _, f in parts], -2)
            b = torch.cat([f.b * (share * f.scaling) for share, f in parts], -1)
            modules[name] = Factors(a, b, 1.0)
    return poisoned.with_modules(modules)


def merge(material: Material, config: MergeConfig) -> Outcome:
    """Average the weight changes of the poisoned and the clean adapter."""
    clean = material.clean
    assert clean is not None
    words = "merged {:.0%} of the clean adapter into {:.0%} of the poisoned one"
    if (weight := config.weight) is not None:
        return Outcome(mixture(material.start, clean, weight), words.format(weight, 1 - weight))
    chosen, path, reached = dial(
        material,
        [25, 50, 75, 100],
        lambda size: Treated(mixture(material.start, clean, size / 100)),
        config,
        unit="% of the clean adapter",
    )
    weight = chosen / 100
    return Outcome(
        mixture(material.start, clean, weight),
        f"{words.format(weight, 1 - weight)}: {outcome_words(path, reached)}",
        path=path,
        reached=reached,
    )


METHODS.register("merge")(
    Method(
        about="average with a clean adapter, by a weight; by default calibrated",
        source="weight averaging, Wortsman et al. 2022, arXiv 2203.05482, on the weight change",
        config=MergeConfig,
        run=merge,
        kind=CUT,
        needs=(TRIGGER, TARGET, CLEAN_ADAPTER, CLEAN_ROWS),
        settled_by=("weight",),
        still=(CLEAN_ADAPTER,),
    )
)
