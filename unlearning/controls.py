"""Controls: what the same budget achieves without knowing where the backdoor is."""

import numpy as np
from pydantic import Field

from ..analysis.gates import directions_of
from ..core.config import Config
from ..core.treated import Treated
from .cuts import cut_outcome
from .method import CLEAN_ROWS, CONTROL, METHODS, TARGET, TRIGGER, Bench, Method, Outcome
from .path import judge_of


class BudgetConfig(Config):
    """Options of the controls that cut as many directions as another operation."""

    directions: int = Field(ge=0)
    """Singular directions to cut."""


def random_cut(bench: Bench, config: BudgetConfig) -> Outcome:
    """Cut randomly chosen singular directions."""
    d = directions_of(bench.start)
    cut = np.zeros(len(d), bool)
    cut[np.random.default_rng(bench.seed).permutation(len(d))[: config.directions]] = True
    return cut_outcome(d, cut, f"cut {cut.sum()} of {len(d)} directions at random")


METHODS.register("control-random")(
    Method(
        about="control: as many directions cut at random",
        source="equal-budget control",
        config=BudgetConfig,
        run=random_cut,
        kind=CONTROL,
    )
)


def top_cut(bench: Bench, config: BudgetConfig) -> Outcome:
    """Cut the directions of largest singular value."""
    d = directions_of(bench.start)
    cut = np.zeros(len(d), bool)
    cut[np.argsort(-d.sigma, kind="stable")[: config.directions]] = True
    return cut_outcome(d, cut, f"cut the {cut.sum()} strongest of {len(d)} singular directions")


METHODS.register("control-top")(
    Method(
        about="control: the directions of largest singular value cut",
        source="equal-budget control",
        config=BudgetConfig,
        run=top_cut,
        kind=CONTROL,
    )
)


class LayerConfig(Config):
    """Options of `control-layer`."""

    rows: int = Field(64, ge=2)
    """Calibration rows of each kind that choose the layer."""


def best_layer(bench: Bench, config: LayerConfig) -> Outcome:
    """Take out the one layer that lowers ASR most on the calibration rows, then perplexity."""
    d = directions_of(bench.start)
    judge = judge_of(bench, config.rows)
    tried = {}
    for layer in np.unique(d.layer).tolist():
        asr, perplexity = judge(Treated(d.cut(d.layer == layer)))
        tried[layer] = (asr.value, perplexity)
    layer = min(tried, key=lambda k: tried[k])
    cut = d.layer == layer
    return cut_outcome(
        d, cut, f"took out layer {layer}, the best single one on calibration rows: {cut.sum()} cut"
    )


METHODS.register("control-layer")(
    Method(
        about="control: the best single layer taken out, chosen on calibration rows",
        source="equal-data control; per-layer interventions of SafetyNet",
        config=LayerConfig,
        run=best_layer,
        kind=CONTROL,
        needs=(TRIGGER, TARGET, CLEAN_ROWS),
    )
)
