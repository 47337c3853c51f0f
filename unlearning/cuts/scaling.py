"""Uniform scaling: the whole weight change made smaller."""

import torch
from pydantic import Field

from ...analysis.material import Material
from ...core.adapter.algebra import scale_directions
from ...core.adapter.factors import Adapter
from ...core.model.variant import Treated
from ..calibration import DialConfig, dial, outcome_words
from ..method import CLEAN_ROWS, CUT, METHODS, TARGET, TRIGGER, Method, Outcome


class ScaleConfig(DialConfig):
    """Options of `scale`."""

    factor: float | None = Field(None, ge=0, le=1)
    """Factor of every weight change; None: the mildest of 0.9 to 0 chosen on calibration rows."""


def scaled(adapter: Adapter, factor: float) -> Adapter:
    """The adapter with every dW multiplied by a factor; 0 leaves no live direction."""
    return scale_directions(
        adapter, {n: torch.full(f.a.shape[:-1], factor) for n, f in adapter.modules.items()}
    )


def scale(material: Material, config: ScaleConfig) -> Outcome:
    """Multiply the weight change by one factor: ``W + factor * dW`` (Ilharco et al. 2023)."""
    words = "scaled every weight change by {:g}"
    if config.factor is not None:
        return Outcome(scaled(material.start, config.factor), words.format(config.factor))

    def factor(size: float) -> float:
        return round(1 - size / 100, 2)

    chosen, path, reached = dial(
        material,
        list(range(10, 101, 10)),
        lambda size: Treated(scaled(material.start, factor(size))),
        config,
        unit="% of the change taken away",
    )
    return Outcome(
        scaled(material.start, factor(chosen)),
        f"{words.format(factor(chosen))}: {outcome_words(path, reached)}",
        path=path,
        reached=reached,
    )


METHODS.register("scale")(
    Method(
        about="multiply the whole weight change by a factor; by default calibrated",
        source="task vectors, Ilharco et al. 2023, arXiv 2212.04089, section 3",
        config=ScaleConfig,
        run=scale,
        kind=CUT,
        needs=(TRIGGER, TARGET, CLEAN_ROWS),
        settled_by=("factor",),
    )
)
