"""Which weights of a base an adapter's settings adapt, and with which rank and scaling: as PEFT."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .patterns import Patterns
from .stored import EMBEDDINGS, Shape

ALL_LINEAR = "all-linear"
HEADS = ("lm_head", "embed_out", "output")
"""Last parts of the names of heads, which `ALL_LINEAR` leaves out."""


def ends_in(name: str, parts: Iterable[str]) -> str | None:
    """The first of some names that a module's name is or ends in."""
    return next((p for p in parts if name == p or name.endswith("." + p)), None)


def is_embedding(name: str) -> bool:
    """Whether a weight is a token embedding, by its name."""
    return name.rsplit(".", 1)[-1] in EMBEDDINGS


def fused_keys(names: Iterable[str]) -> dict[str, str]:
    """Fused weight -> storage stem: PEFT nests the wrappers, the first weight innermost."""
    parents: dict[str, list[str]] = {}
    for name in names:
        parents.setdefault(name.rsplit(".", 1)[0], []).append(name)
    return {
        name: parent + ".base_layer" * (len(group) - 1 - i)
        for parent, group in parents.items()
        for i, name in enumerate(group)
    }


def expected(
    config: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    stored: Iterable[str],
    patterns: Patterns,
) -> dict[str, str]:
    """Module name -> storage stem of everything that the settings adapt.

    Args:
        config: adapter_config.json.
        shapes: of the base's weights, under the names that the adapter has for them.
        stored: stems that the adapter has factors of. They alone count where the settings name no
            modules at all, and where PEFT ties the head's factors to those of the embedding.
        patterns: matcher of regular expressions.

    Raises:
        AdapterError: a regular expression that cannot be matched safely.
    """
    parameters = config.get("target_parameters") or []
    stored = set(stored)
    if config.get("target_modules") is None and not parameters:
        flat = {n: n for n, s in shapes.items() if len(s) == 2 and n in stored}
    else:
        flat = {n: n for n, s in shapes.items() if len(s) == 2 and targeted(config, n, patterns)}
    if config.get("ensure_weight_tying"):
        flat |= {n: n for n in shapes if n in stored and n.rsplit(".", 1)[-1] in HEADS}
    fused = [n for n, s in shapes.items() if len(s) == 3 and ends_in(n, parameters)]
    return flat | fused_keys(fused)


def targeted(config: Mapping[str, Any], name: str, patterns: Patterns) -> bool:
    """Whether PEFT would adapt a linear layer or an embedding."""
    spec, excluded = config.get("target_modules"), config.get("exclude_modules") or []
    if isinstance(excluded, str):
        if patterns.full("exclude_modules", excluded, name):
            return False
    elif ends_in(name, excluded):
        return False
    whole = config.get("modules_to_save") or []
    if any(patterns.full("modules_to_save", rf"(?:.*\.)?{m}(?:\..*)?", name) for m in whole):
        return False  # saved whole, so PEFT puts no factors on it
    if not spec:
        return False
    if isinstance(spec, str):
        if spec.lower() == ALL_LINEAR:
            return name.rsplit(".", 1)[-1] not in HEADS and not is_embedding(name)
        return patterns.full("target_modules", spec, name)
    if name in spec:
        return True
    return ends_in(name, spec) is not None and _layer_wanted(config, name, patterns)


def _layer_wanted(config: Mapping[str, Any], name: str, patterns: Patterns) -> bool:
    """Whether `layers_to_transform`, seen through `layers_pattern`, takes a module in."""
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    given = config.get("layers_pattern") or [None]
    for pattern in [given] if isinstance(given, str) else given:
        number = patterns.layer("layers_pattern", pattern, name)
        if number is not None:
            return number in ([layers] if isinstance(layers, int) else layers)
    return False


def rank_and_scaling(config: Mapping[str, Any], name: str, patterns: Patterns) -> tuple[int, float]:
    """Rank and scaling of one module: the first key of each pattern that fits its name wins."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    by_rank, by_alpha = (
        patterns.key("rank_pattern", ranks, name),
        patterns.key("alpha_pattern", alphas, name),
    )
    rank = int(ranks[by_rank]) if by_rank is not None else int(config["r"])
    alpha = float(alphas[by_alpha]) if by_alpha is not None else float(config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
