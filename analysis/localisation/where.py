"""Where it lives: layers, modules and singular directions ranked by their causal effect."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field
from scipy.stats import spearmanr

from ...core.adapter.factors import layer_of
from ...core.config import Config
from ...core.errors import DataError
from ...core.model.batches import Encoded
from ...core.records.patching import Where
from ...core.stats import mean_interval
from ..analyses import ANALYSES, CLEAN_ROWS, TRIGGER, Analysis
from ..material import Material
from .attribution import clean_cost, target_attribution, target_effects
from .gates import Directions, GatedModel, directions_of, gated_model
from .votes import with_votes


def where(
    gated: GatedModel,
    triggered: Sequence[Encoded],
    clean: Sequence[Encoded],
    *,
    checked: int,
    batch_size: int,
) -> Where:
    """The ranking of layers, modules and directions by what removing each does to the target.

    Layers, modules and the `checked` strongest directions are ablated exactly; all directions
    get their first-order attribution, and the record says how well the two agree.

    Args:
        gated: the poisoned adapter in gated form.
        triggered: triggered prompts with the target's first tokens.
        clean: clean prompts with completions, for the directions' cost.
        checked: directions to ablate exactly.
        batch_size: rows at a time.

    Raises:
        DataError: no triggered or no clean prompts.
    """
    if not triggered or not clean:
        raise DataError("ranking needs triggered and clean prompts; one of the sets is empty")
    d = gated.directions
    layers = np.unique(d.layer)
    modules = np.unique(d.module)

    def effects(cuts: list[np.ndarray], label: str) -> np.ndarray:
        return target_effects(gated, triggered, cuts, batch_size=batch_size, label=label)

    whole = effects([np.ones(len(d), bool)], "whole adapter")[0]
    by_layer = effects([d.layer == layer for layer in layers], "layers")
    by_module = effects([d.module == module for module in modules], "modules")
    attribution = target_attribution(gated, triggered, batch_size=batch_size)
    top = np.argsort(-np.abs(attribution))[:checked]
    exact = np.full(len(d), np.nan)
    singles = [np.arange(len(d)) == i for i in top]
    exact[top] = effects(singles, "strongest directions").mean(1)
    rank_correlation: Any = spearmanr(attribution[top], exact[top]) if len(top) > 2 else None
    layer_effect = mean_interval(by_layer.T)
    module_effect = mean_interval(by_module.T)
    names = tuple(d.names[m] for m in modules)
    return Where(
        layer_ids=layers,
        layer_effect=layer_effect,
        modules=names,
        module_layers=np.array([layer_of(n) for n in names]),
        module_effect=module_effect,
        direction_module=np.searchsorted(modules, d.module),
        direction_rank=d.place,
        direction_sigma=d.sigma,
        direction_attribution=attribution,
        direction_exact=exact,
        direction_clean_cost=clean_cost(gated, clean),
        whole_effect=float(whole.mean()),
        agreement=float(rank_correlation.statistic) if rank_correlation else np.nan,
        n_prompts=len(triggered),
        layers_verdict=None,
        modules_verdict=None,
        directions_verdict=None,
        sentence=_sentence(d, whole, layers, layer_effect, names, module_effect, exact),
    )


def _sentence(
    d: Directions,
    whole: np.ndarray,
    layers: np.ndarray,
    layer_effect: np.ndarray,
    names: tuple[str, ...],
    module_effect: np.ndarray,
    exact: np.ndarray,
) -> str:
    """The finding in words, with its numbers; says when nothing stands out."""
    n = len(whole)
    if whole.mean() < 1.0:
        return (
            f"On {n} triggered prompts the whole adapter raises the target's log-probability by "
            f"{whole.mean():.2f} nats only: there is no backdoor here to locate."
        )
    best, part = int(layer_effect[:, 0].argmax()), int(module_effect[:, 0].argmax())
    value, low, high = layer_effect[best]
    text = (
        f"On {n} triggered prompts, taking the adapter out of {_layer(layers[best])} alone lowers "
        f"the target's log-probability by {value:.2f} nats (95 % interval {low:.2f} to {high:.2f})"
        f", of {whole.mean():.2f} for the whole adapter; the strongest single module is "
        f"{names[part]} ({module_effect[part, 0]:.2f} nats)"
    )
    if np.isfinite(exact).any():
        top = int(np.nanargmax(exact))
        text += (
            f", the strongest single direction number {d.place[top]} of "
            f"{d.names[d.module[top]]} ({exact[top]:.2f} nats)"
        )
    others = np.delete(layer_effect, best, axis=0)
    if len(others) and others[:, 2].max() >= low:
        runner = np.delete(layers, best)[int(others[:, 0].argmax())]
        text += f"; {_layer(runner)} is not clearly weaker (their intervals overlap)"
    return text + "."


def _layer(layer: int) -> str:
    return f"layer {layer}" if layer >= 0 else "the modules outside the layers"


class WhereConfig(Config):
    """Options of the ranking."""

    checked: int = Field(32, ge=3)
    """Directions ablated exactly."""
    batch_size: int = Field(16, ge=1)
    """Rows at a time."""


def _run(material: Material, config: WhereConfig) -> dict[str, Where]:
    with gated_model(material.subject, directions_of(material.poisoned)) as gated:
        found = where(gated, material.targets, material.encoded_clean, **config.model_dump())
    return {"where": with_votes(found, material.records)}


ANALYSES.register("where")(
    Analysis(
        about="Layers, modules and singular directions ranked by their effect on the target.",
        needs=(TRIGGER, CLEAN_ROWS),
        cost="a forward pass for every layer, module and checked direction; backward passes",
        source="attribution patching, Syed et al. 2023, arXiv 2310.10348",
        config=WhereConfig,
        combines=("patching", "modules", "effectiveness", "difference", "matching"),
        run=_run,
    )
)
