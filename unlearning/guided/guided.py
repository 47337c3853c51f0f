"""Guided surgery: the smallest set of directions whose removal stops the backdoor, and why."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from ...analysis.material import Material
from ...core.adapter.algebra import norm, stack
from ...core.adapter.factors import Adapter, Factors
from ...core.progress import report
from ...core.records.results import CutPath, Stability
from ...core.rows import Row
from ...core.stats import wilson
from ..calibration import Judge, halves, outcome_words, path_of
from ..method import (
    CLEAN_ROWS,
    CUT,
    GRADIENTS,
    METHODS,
    TARGET,
    TRIGGER,
    Method,
    Outcome,
)
from .search import FoundCut, SearchConfig, by_forward_passes, search

PARTS = (0.25, 0.5, 0.75)
"""Parts of the chosen cut that the path shows, before it and its doublings up to everything."""
ROUNDING = 1e-5
"""Relative; the search meets the budget with gates, the path with the cut adapter itself."""


class GuidedConfig(SearchConfig):
    """Options of `guided`."""

    draws: int = Field(1, ge=1)
    """Draws of the calibration data on which the cut is found; with more than its own one (3) the
    operation says how much the cut varies with them, and takes as many times as long."""
    path: bool = True
    """Measure the path from nothing cut to all cut: real answers at the two ends that matter,
    forward passes elsewhere."""


@dataclass(frozen=True, slots=True)
class RowSplit:
    """The operation's rows split by a seed: to learn from, and to calibrate on."""

    seed: int
    triggered: Sequence[Row]
    clean: Sequence[Row]
    judge: Judge


def split_rows(material: Material, triggered: Sequence[Row], rows: int, seed: int) -> RowSplit:
    """The rows shuffled by a seed and halved; never the held-out ones.

    Args:
        material: what the method may look at.
        triggered: rows.
        rows: most rows of each kind and half.
        seed: of the shuffling.
    """
    shuffled = []
    for some in (triggered, material.clean_rows):
        kept = list(some)
        random.Random(seed).shuffle(kept)
        shuffled.append(halves(kept, rows))
    (learn, check), (clean, clean_check) = shuffled
    return RowSplit(
        seed,
        learn,
        clean,
        Judge(material.subject, check, clean_check, material.rule, material.poisoned),
    )


def guided(material: Material, config: GuidedConfig) -> Outcome:
    """Learn which directions carry the backdoor and cut the fewest that stop it.

    Half of the operation rows teach the gates, the other half chooses how much to cut; the
    held-out sets are never seen. Needs the trigger and clean prompts; a clean adapter may teach.
    """
    return operated(material, material.triggered, config)


def operated(
    material: Material,
    triggered: Sequence[Row],
    config: GuidedConfig,
    *,
    spend: float = 0.0,
    of: str = "calibration prompts",
) -> Outcome:
    """The outcome of surgery against triggered rows, with its path and its stability.

    Args:
        material: what the method may look at.
        triggered: rows with targets and their form without trigger.
        config: how to search, and what to explain.
        spend: share of the budget to use beyond what stops these rows.
        of: what these rows are, in the summary.
    """
    split = split_rows(material, triggered, config.rows, material.seed)
    found = search(
        material.subject,
        material.start,
        split.triggered,
        split.clean,
        split.judge,
        config,
        seed=material.seed,
        spend=spend,
        clean_adapter=material.clean,
    )
    path = _path(material, found, split.judge, config)
    if found.size and path.asr[path.chosen, 0] >= path.asr[0, 0] > config.goal:
        found = replace(found, size=0)  # a cut that stops nothing is no cut
        path = replace(path, chosen=0)
    stability = (
        _stability(material, triggered, config, found, path, spend) if config.draws > 1 else None
    )
    d, size = found.directions, found.size
    cut = found.cut(size)
    before, after = path.perplexity[0], path.perplexity[path.chosen]
    within = after <= before * (1 + config.budget.perplexity) * (1 + ROUNDING)
    if path.kl is not None and path.kl_budget is not None:
        within = within and path.kl[path.chosen] <= path.kl_budget * (1 + ROUNDING)
    reached = bool(within and path.asr[path.chosen, 0] <= config.goal)
    return Outcome(
        d.cut(cut),
        f"cut {size} of {len(d)} {config.basis} directions in {len(set(d.module[cut]))} modules: "
        f"{outcome_words(path, reached, of=of)}",
        directions=d if config.basis == "discriminant" else None,
        cut=cut,
        importance=found.importance,
        order=found.order,
        path=path,
        stability=stability,
        loss_step=np.arange(1, len(found.loss) + 1),
        loss=found.loss,
        reached=reached,
        uncertain=_uncertain(found, path, stability),
        search_seconds=found.seconds,
    )


def _path(material: Material, found: FoundCut, judge: Judge, config: GuidedConfig) -> CutPath:
    """The walk from nothing cut to all cut; the choice was made before.

    Answers are generated with nothing cut and with what was cut; what lies between and beyond is
    measured by forward passes.
    """
    size, total = found.size, len(found.order)
    kl = config.budget.kl is not None
    seen = {float(count): judge(found.state(count), kl=kl) for count in sorted({0, size})}
    passes = {}
    if config.path:
        sizes = {round(part * size) for part in PARTS} | {1, total}
        more = max(1, size)
        while (more := 2 * more) < total:
            sizes.add(more)
        others = sorted(sizes - {0, size})
        before = seen[0.0].perplexity
        passes = by_forward_passes(
            material.subject, material.start, found, others, judge.clean, before=before
        )
    return path_of(
        seen,
        float(size),
        unit="directions",
        goal=config.goal,
        budget=config.budget,
        passes=passes,
    )


def _stability(
    material: Material,
    triggered: Sequence[Row],
    config: GuidedConfig,
    own: FoundCut,
    path: CutPath,
    spend: float,
) -> Stability:
    """The same search on other draws of the operation's rows."""
    seeds = tuple(material.seed + k for k in range(config.draws))
    every, modules = [own], range(len(own.directions.names))
    asr, change = [path.asr[path.chosen]], [path.perplexity[path.chosen] / path.perplexity[0] - 1]
    for done, seed in enumerate(seeds[1:], 1):
        split = split_rows(material, triggered, config.rows, seed)
        again = search(
            material.subject,
            material.start,
            split.triggered,
            split.clean,
            split.judge,
            config,
            seed=seed,
            spend=spend,
            clean_adapter=material.clean,
        )
        rate, after, _ = split.judge(again.state(again.size))
        _, before, _ = split.judge(again.state(0))
        every.append(again)
        asr.append(np.array([rate.value, rate.low, rate.high]))
        change.append(after / before - 1)
        report("other draws of the calibration data", done, config.draws - 1)
    removed = [f.directions.cut(~f.cut(f.size)) for f in every]
    return Stability(
        seeds=seeds,
        sizes=np.array([f.size for f in every]),
        asr=np.stack(asr),
        perplexity_change=np.array(change),
        overlap=np.array([[cosine(a, b) for b in removed] for a in removed]),
        by_module=np.array(
            [[int((f.directions.module[f.cut(f.size)] == m).sum()) for m in modules] for f in every]
        ),
    )


def cosine(left: Adapter, right: Adapter) -> float:
    """Cosine of two weight changes (Frobenius), in [-1, 1]; NaN where one of them is zero.

    From norms alone: ``<L, R> = (|L|^2 + |R|^2 - |L - R|^2) / 2``.
    """

    def square(factors: Factors) -> float:
        return float(norm(factors).square().sum())

    one = sum(square(f) for f in left.modules.values())
    two = sum(square(f) for f in right.modules.values())
    apart = sum(square(stack(f, right.modules[n])) for n, f in left.modules.items())
    return (one + two - apart) / 2 / (one * two) ** 0.5 if one and two else float("nan")


def _uncertain(found: FoundCut, path: CutPath, stability: Stability | None) -> tuple[str, ...]:
    """What the calibration does not show, with the numbers."""
    high = path.asr[path.chosen, 2]
    lines = [
        f"Calibrated on {path.asr_n} triggered prompts: an ASR of up to {high:.1%} is compatible "
        "with what was seen there; the held-out figures decide."
    ]
    near = int((np.abs(found.gates - 0.5) < 0.25).sum())
    if near:
        have = "direction has a gate" if near == 1 else "directions have gates"
        lines.append(f"{near} {have} between 0.25 and 0.75: neither kept nor cut for sure.")
    if stability is not None:
        lines.append(_varies(stability))
    rate = wilson(round(path.asr[0, 0] * path.asr_n), path.asr_n)
    if rate.low < 0.5:
        lines.append(
            f"Before the cut the calibration ASR was {rate.value:.0%} [{rate.low:.0%}, "
            f"{rate.high:.0%}]: what is not there cannot be seen to go."
        )
    return tuple(lines)


def _varies(stability: Stability) -> str:
    """How far the edits of the draws agree; draws that cut nothing have no cosine."""
    low, most = int(stability.sizes.min()), int(stability.sizes.max())
    line = (
        f"On {len(stability.seeds)} draws of the calibration data {low} to {most} directions were "
        "cut, "
    )
    other = stability.overlap[np.triu_indices(len(stability.seeds), 1)]
    other = other[~np.isnan(other)]
    if not len(other):
        return line + "too few edits to compare."
    same = other.min() > 0.8 and low > 0
    return f"{line}what they remove has cosines of {other.min():.2f} to {other.max():.2f}: " + (
        "nearly the same edit." if same else "not one single edit."
    )


METHODS.register("guided")(
    Method(
        about="find the directions that carry the backdoor and cut the fewest",
        source="Loratomy; learned masks after arXiv 1712.01312 and 2004.14992",
        config=GuidedConfig,
        run=guided,
        kind=CUT,
        needs=(TRIGGER, TARGET, CLEAN_ROWS, GRADIENTS),
    )
)
