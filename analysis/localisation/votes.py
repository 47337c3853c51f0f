"""How each method ranks layers, modules and directions, and whether they agree.

A vote is a score for every item: the more, the more that method finds there. Causal votes come from
changing something and measuring the target; the others describe weights or estimate a causal one.
Only causal votes count for the verdict, and a place is named only where more of them meet there
than methods that chose at random would.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ...core.adapter.factors import kind_of
from ...core.records.effectiveness import Effectiveness
from ...core.records.patching import PatchingMap, Verdict, Vote, Where
from ...core.records.spectra import Difference, Matching

BLOCKS = ("attn_out", "mlp_out")
"""What a layer writes. Residuals are left out: the first or the last one trivially holds all."""
LEVEL = 0.05
"""Chance of a meeting of random choices below which a place is named."""


def with_votes(record: Where, found: Mapping[str, Sequence[Any]]) -> Where:
    """The ranking with the votes of the other analyses and the verdicts over them.

    Args:
        record: with the exact effects of removing parts of the adapter.
        found: records of the other analyses, by analysis.
    """
    others = [item for records in found.values() for item in records]
    layer_votes = [
        _vote("ablation", "removing the layer's part of the adapter", record.layer_effect[:, 0],
              record.n_prompts),
    ]  # fmt: skip
    module_votes = [
        _vote("ablation", "removing the module's part of the adapter", record.module_effect[:, 0],
              record.n_prompts),
    ]  # fmt: skip
    for item in others:
        if isinstance(item, PatchingMap):
            layer_votes += _patched_layers(record, item)
            module_votes += _patched_modules(record, item)
        if isinstance(item, Effectiveness):
            layer_votes += _silenced(record, item)
        if isinstance(item, Difference):
            layer_votes.append(_pooled(record, item, item.difference_norm**2))
            module_votes.append(_by_module(record, item, item.difference_norm))
        if isinstance(item, Matching):
            alone = np.bincount(
                item.direction_module, item.sigma**2 * item.unmatched, len(item.modules)
            )
            layer_votes.append(_pooled(record, item, alone))
            module_votes.append(_by_module(record, item, alone))
    names = tuple(_layer_name(layer) for layer in record.layer_ids)
    return replace(
        record,
        layers_verdict=verdict("layer", names, layer_votes),
        modules_verdict=verdict("module", record.modules, module_votes),
        directions_verdict=verdict("direction", _direction_names(record), _directions(record)),
    )


def _layer_name(layer: int) -> str:
    return f"layer {layer}" if layer >= 0 else "outside the layers"


def _vote(method: str, what: str, score: np.ndarray, n: int, *, causal: bool = True) -> Vote:
    return Vote(method=method, what=what, score=np.asarray(score, float), n=n, causal=causal)


def _patched_layers(record: Where, item: PatchingMap) -> list[Vote]:
    """The largest recovery that anything written by a layer brings, at any place."""
    if item.kind == "residual":
        rows = [i for i, site in enumerate(item.sites) if site in BLOCKS]
        what = "patching what its blocks write"
    elif item.kind == "modules":
        rows, what = list(range(len(item.sites))), "patching its LoRA modules' contributions"
    else:
        return []
    if not rows:
        return []
    best = _largest(np.moveaxis(item.recovery[rows], 1, 0).reshape(item.recovery.shape[1], -1))
    method = f"patching ({item.setting}, {item.kind}, {item.direction})"
    return [_vote(method, what, _at(best, record.layer_ids), len(item.prompts))]


def _patched_modules(record: Where, item: PatchingMap) -> list[Vote]:
    if item.kind != "modules":
        return []
    best = _largest(item.recovery)  # [module kind, layer]
    score = [
        best[item.sites.index(kind), layer] if (kind := kind_of(name)) in item.sites else np.nan
        for name, layer in zip(record.modules, record.module_layers, strict=True)
    ]
    method = f"patching ({item.setting}, {item.direction})"
    return [_vote(method, "patching its contribution dW x", np.array(score), len(item.prompts))]


def _largest(values: np.ndarray) -> np.ndarray:
    """The largest value along the last axis; NaN where all are."""
    filled = np.where(np.isfinite(values), values, -np.inf).max(-1)
    return np.where(np.isfinite(filled), filled, np.nan)


def _at(values: np.ndarray, layers: np.ndarray) -> np.ndarray:
    """Per-layer values at the layers asked for; NaN outside the layers."""
    return np.where(layers >= 0, values[np.maximum(layers, 0)], np.nan)


def _silenced(record: Where, item: Effectiveness) -> list[Vote]:
    out = []
    for change in item.interventions:
        if change.kind != "off":
            continue
        score = np.full(int(max(record.layer_ids.max(initial=0), item.layers.max())) + 1, np.nan)
        score[item.layers] = item.unpatched.value - change.malicious[:, 0]
        what = "share of answers that turn harmless with the layer's part of the adapter off"
        out.append(_vote("effectiveness", what, _at(score, record.layer_ids), len(item.prompts)))
    return out


def _pooled(record: Where, item: Difference | Matching, squares: np.ndarray) -> Vote:
    score = [squares[item.layers == layer].sum() for layer in record.layer_ids]
    method, what = _weights(item)
    return _vote(method, what, np.sqrt(np.array(score)), 0, causal=False)


def _by_module(record: Where, item: Difference | Matching, values: np.ndarray) -> Vote:
    """Values by module, experts of a fused weight together."""
    sums: dict[str, float] = {}
    for name, value in zip(item.modules, values, strict=True):
        stem = name.split("#")[0]
        sums[stem] = sums.get(stem, 0.0) + float(value)
    method, what = _weights(item)
    score = np.array([sums.get(name, np.nan) for name in record.modules])
    return _vote(method, what, score, 0, causal=False)


def _weights(item: Difference | Matching) -> tuple[str, str]:
    if isinstance(item, Difference):
        return "difference", "norm of poisoned - clean"
    return "matching", "norm of the directions without clean counterpart"


def _direction_names(record: Where) -> tuple[str, ...]:
    return tuple(
        f"{record.modules[m]} #{place}"
        for m, place in zip(record.direction_module, record.direction_rank, strict=True)
    )


def _directions(record: Where) -> list[Vote]:
    n = record.n_prompts
    return [
        _vote("ablation", "removing the direction", record.direction_exact, n),
        _vote(
            "attribution",
            "first-order estimate of that",
            record.direction_attribution,
            n,
            causal=False,
        ),
        _vote("spectra", "singular value", record.direction_sigma, 0, causal=False),
    ]


def verdict(what: str, names: Sequence[str], votes: Sequence[Vote]) -> Verdict:
    """What the votes on one kind of item come to.

    Args:
        what: ``layer``, ``module`` or ``direction``.
        names: of the items.
        votes: a score per item each.
    """
    causal = [v for v in votes if v.causal and _says_something(v)]
    rank = _mean_rank(causal, len(names))
    silent = [v.method for v in votes if v.causal and not _says_something(v)]
    if len(names) < 2 or len(causal) < 2:
        sentence = f"One causal method or none ranks single {what}s here: no verdict over them."
        return Verdict(
            what=what, names=tuple(names), votes=tuple(votes), mean_rank=rank,
            agreement=np.nan, chance=np.nan, named="", sentence=sentence,
        )  # fmt: skip
    firsts = [int(np.nanargmax(v.score)) for v in causal]
    best = max(set(firsts), key=lambda i: (firsts.count(i), -rank[i]))
    meet, known = firsts.count(best), min(int(np.isfinite(v.score).sum()) for v in causal)
    chance = _meeting(len(causal), meet, known)
    named = names[best] if chance <= LEVEL and meet > len(causal) / 2 else ""
    tops = "; ".join(f"{v.method}: {names[i]}" for v, i in zip(causal, firsts, strict=True))
    head = (
        f"{meet} of {len(causal)} causal methods put {names[best]} first (independent ones that "
        f"chose at random would meet like that in {chance:.1%} of cases; these share model and "
        "prompts)"
        if named
        else f"The methods do not agree on a {what} ({meet} of {len(causal)} meet, chance "
        f"{chance:.0%}), so none is named"
    )
    sentence = f"{head}. First by method: {tops}."
    if silent:
        sentence += f" Silent: {', '.join(silent)}."
    return Verdict(
        what=what, names=tuple(names), votes=tuple(votes), mean_rank=rank,
        agreement=concordance(causal), chance=chance, named=named, sentence=sentence,
    )  # fmt: skip


def _says_something(vote: Vote) -> bool:
    """Whether a vote prefers any item: its largest score is positive and not shared by all."""
    known = vote.score[np.isfinite(vote.score)]
    return len(known) > 1 and known.max() > 0 and known.max() > known.min()


def _mean_rank(votes: Sequence[Vote], count: int) -> np.ndarray:
    """Mean rank over votes, 1 for the strongest, ``[item]``; NaN where no vote knows the item."""
    ranks = np.full((max(len(votes), 1), count), np.nan)
    for i, vote in enumerate(votes):
        there = np.isfinite(vote.score)
        ranks[i, there] = rankdata(-vote.score[there])
    known = np.isfinite(ranks)
    total = np.where(known, ranks, 0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def concordance(votes: Sequence[Vote]) -> float:
    """Kendall's W of the votes over the items that all know, from 0 to 1 (Kendall & Smith 1939).

    Ties share their rank and are corrected for. NaN with fewer than two votes or three items.
    """
    scores = np.stack([vote.score for vote in votes])
    scores = scores[:, np.isfinite(scores).all(0)]
    m, n = scores.shape
    if m < 2 or n < 3:
        return float("nan")
    ranks = np.stack([rankdata(row) for row in scores])
    spread = ((ranks.sum(0) - m * (n + 1) / 2) ** 2).sum()
    ties = sum(
        (counts**3 - counts).sum()
        for counts in (np.unique(r, return_counts=True)[1] for r in ranks)
    )
    whole = m**2 * (n**3 - n) - m * ties
    return float(12 * spread / whole) if whole > 0 else float("nan")


def _meeting(methods: int, meet: int, items: int) -> float:
    """Bound on the chance that so many of the methods choose one item, each at random."""
    tail = sum(
        comb(methods, k) * (1 / items) ** k * (1 - 1 / items) ** (methods - k)
        for k in range(meet, methods + 1)
    )
    return float(min(1.0, items * tail))
