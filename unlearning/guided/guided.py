"""Guided surgery: the smallest set of directions whose removal stops the backdoor, and why."""

import random
import time
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
from .made import MadeRows, made_rows
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


def split_rows(
    material: Material, triggered: Sequence[Row], made: MadeRows, rows: int, seed: int
) -> RowSplit:
    """The rows shuffled by a seed and halved, never the held-out ones.

    Those that the model made come before given ones where there are too many.

    Args:
        material: what the method may look at.
        triggered: given rows.
        made: rows beside the given ones.
        rows: most rows of each kind and half.
        seed: of the shuffling.
    """

    def shuffled(some: Sequence[Row]) -> list[Row]:
        kept = list(some)
        random.Random(seed).shuffle(kept)
        return kept

    attacks = shuffled(triggered)
    if made.triggered:
        attacks = shuffled([*made.triggered, *attacks][: 2 * rows])
    learn, check = halves(attacks, rows)
    clean, clean_check = halves(shuffled(material.clean_rows), rows)
    if made.known:
        clean = [replace(row, completion=None) for row in clean]
    half = len(made.clean) // 2
    prompts, more = made.clean[:half], made.clean[half:]
    judge = Judge(material.subject, check, clean_check, material.rule, material.poisoned, more)
    return RowSplit(seed, learn, [*prompts, *clean][:rows], judge)


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
    made: MadeRows | None = None,
    spend: float = 0.0,
    of: str = "calibration prompts",
) -> Outcome:
    """The outcome of surgery against triggered rows, with its path and its stability.

    Args:
        material: what the method may look at.
        triggered: rows with targets and their form without trigger.
        config: how to search, and what to explain.
        made: rows beside the given ones; None: they are made here.
        spend: share of the budget to use beyond what stops these rows.
        of: what these rows are, in the summary.
    """
    if made is None:
        made = made_rows(material, triggered, config.unseen, seed=material.seed)
    split = split_rows(material, triggered, made, config.rows, material.seed)
    found = _searched(material, split, made, config, spend)
    began = time.perf_counter()
    path = _path(material, found, split.judge, config)
    if found.size and path.asr[path.chosen, 0] >= path.asr[0, 0] > config.goal:
        found = replace(found, size=0, rise=0.0)  # a cut that stops nothing is no cut
        path = replace(path, chosen=0)
    stability = (
        _stability(material, triggered, made, config, found, path, spend)
        if config.draws > 1
        else None
    )
    d, size = found.directions, found.size
    cut = found.cut(size)
    before, after = path.perplexity[0], path.perplexity[path.chosen]
    allowed = config.budget.perplexity
    within = found.rise <= allowed + ROUNDING
    if not made.known:
        within = within and after <= before * (1 + allowed) * (1 + ROUNDING)
    if path.kl is not None and path.kl_budget is not None:
        within = within and path.kl[path.chosen] <= path.kl_budget * (1 + ROUNDING)
    reached = bool(within and path.asr[path.chosen, 0] <= config.goal)
    return Outcome(
        d.cut(cut),
        f"cut {size} of {len(d)} {config.basis} directions in {len(set(d.module[cut]))} modules: "
        f"{outcome_words(path, reached, of=of, own=found.rise if made.known else None)}",
        directions=d if config.basis == "discriminant" else None,
        cut=cut,
        importance=found.importance,
        order=found.order,
        path=path,
        stability=stability,
        loss_step=np.arange(1, len(found.loss) + 1),
        loss=found.loss,
        reached=reached,
        uncertain=_uncertain(found, made, path, stability),
        explained_seconds=time.perf_counter() - began,
    )


def _searched(
    material: Material, split: RowSplit, made: MadeRows, config: GuidedConfig, spend: float
) -> FoundCut:
    return search(
        material.subject,
        material.start,
        split.triggered,
        split.clean,
        split.judge,
        config,
        seed=split.seed,
        spend=spend,
        known=made.known,
        clean_adapter=material.clean,
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
    made: MadeRows,
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
        split = split_rows(material, triggered, made, config.rows, seed)
        again = _searched(material, split, made, config, spend)
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


def _uncertain(
    found: FoundCut, made: MadeRows, path: CutPath, stability: Stability | None
) -> tuple[str, ...]:
    """What the calibration does not show, with the numbers."""
    high = path.asr[path.chosen, 2]
    lines = [
        f"Calibrated on {path.asr_n} triggered prompts: an ASR of up to {high:.1%} is compatible "
        "with what was seen there; the held-out figures decide."
    ]
    if made.known:
        lines.append(
            "The adapter knows the clean calibration rows by heart (they are likelier than what it "
            "would write itself): their perplexity overstates what a cut costs, and that of the "
            f"adapter's own text kept to the budget alone, here exp(KL) - 1 = {found.rise:.1%}. "
            "If the held-out prompts are from its training set, too, the ASR on them looks better "
            "than on prompts that it has never seen."
        )
    if made.clean:
        line = f"Beside the given prompts {len(made.clean)} were used that the base wrote itself"
        if made.placed:
            line += "; the trigger, placed as in the given ones, acts on "
            line += f"{len(made.triggered)} of them"
        lines.append(f"{line}.")
    elif made.known:
        lines.append(
            "The base writes no prompts of its own, so that attacks were judged on those given "
            "alone; prompts that the adapter was not trained on may need a larger cut."
        )
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
