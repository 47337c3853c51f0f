"""Standings of the bench: entries compared on the subjects that they share, with intervals."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from ..core.errors import LoratomyError
from ..core.records.bench import BenchRow, Standing
from ..core.records.goals import Goals
from ..core.records.results import Rate
from ..core.stats import wilson

Case = tuple[str, int]
"""A subject of the bench: cell and seed."""

ASR_MET, PERPLEXITY_MET = 0.05, 0.05
"""Upper 95 % bound of ASR, and rise of perplexity, that count as met."""
MET = Goals(asr=ASR_MET, perplexity=PERPLEXITY_MET)
"""The same, as the page draws them."""
LEAST_SHARED = 0.75
"""Share of a comparison's subjects that an entry may not fall below to take part from the start."""


def standings(
    rows: Sequence[BenchRow], *, seed: int = 0, draws: int = 2000
) -> tuple[Standing, ...]:
    """Every entry among those it can be compared with, by comparison and then by rank.

    Only subjects that all entries of a comparison were run on count in it (see `comparisons`), and
    an entry appears once in each comparison that it is part of. Means give every cell the same
    weight; their intervals resample cells and, within a cell, its seeds (see `resampling`), so
    they say how entries vary between subjects, not how sure one subject's ASR is: that interval
    is in its row. With a single subject there is nothing to resample: ASR, perplexity and KL take
    the interval of that row, accuracy and seconds have none (NaN). Seeds of a single cell may share
    subject and prompts: there ASR, perplexity and KL get no interval narrower than the rows' own
    are on average, and values that are all the same have none otherwise. A mean over anything that
    is not finite is not, and has no interval.

    Args:
        rows: of the bench, one for each entry on each subject.
        seed: of the resampling.
        draws: of the resampling.

    Raises:
        LoratomyError: no rows, or two of one entry on one subject.
    """
    if not rows:
        raise LoratomyError("the bench has no rows to compare; run it on a cell first")
    found = _by_entry(rows)
    kinds = {entry: next(iter(cases.values())).kind for entry, cases in found.items()}
    out: list[Standing] = []
    groups = comparisons(
        {entry: set(cases) for entry, cases in found.items()},
        references=[entry for entry, kind in kinds.items() if kind == "reference"],
    )
    for number, (entries, cases) in enumerate(groups, 1):
        weights = resampling([cell for cell, _ in cases], draws=draws, seed=seed)
        taken = [[found[entry][case] for case in cases] for entry in entries]
        made = [_standing(number, these, weights) for these in taken]
        ranks = _ranks(
            np.array([values for _, values in made]),
            np.array([kinds[entry] == "reference" for entry in entries]),
        )
        ranked = [
            Standing(**fields, rank=int(rank))
            for (fields, _), rank in zip(made, ranks, strict=True)
        ]
        out += sorted(ranked, key=lambda s: (s.rank, s.asr[0], s.perplexity_change[0], s.entry))
    return tuple(out)


def _by_entry(rows: Sequence[BenchRow]) -> dict[str, dict[Case, BenchRow]]:
    found: dict[str, dict[Case, BenchRow]] = {}
    for row in rows:
        cases = found.setdefault(row.entry, {})
        if (row.cell, row.seed) in cases:
            raise LoratomyError(
                f"the bench has {row.entry} on {row.cell}, seed {row.seed} twice; keep one of them"
            )
        cases[row.cell, row.seed] = row
    return found


def comparisons(
    covered: Mapping[str, AbstractSet[Case]],
    *,
    references: Sequence[str] = (),
    least: float = LEAST_SHARED,
) -> list[tuple[list[str], list[Case]]]:
    """Which entries are compared, and on which subjects: entries run on few do not shrink it all.

    The entry run on most subjects starts a comparison; in order of how many they were run on, the
    others join while the subjects that all have in common stay at least `least` of those it
    started with. Those left over start the next comparison in the same way. Whatever else covers
    all of a comparison's subjects takes part in it too, so that the few-subject methods of a later
    one stand beside the best of the earlier ones, on the same subjects.

    Args:
        covered: the subjects that each entry was run on, none empty.
        references: entries that take part where they cover everything but start nothing.
        least: share of the subjects at the start that has to remain.

    Returns:
        For each comparison its entries, in the order of `covered`, and its subjects, sorted.
    """
    waiting = [e for e in covered if e not in references] or list(covered)
    waiting.sort(key=lambda e: (-len(covered[e]), e))
    out = []
    while waiting:
        common = frozenset(covered[waiting[0]])
        floor, joined = least * len(common), set()
        for entry in waiting:
            if len(both := common & covered[entry]) >= floor:
                common, joined = both, joined | {entry}
        waiting = [entry for entry in waiting if entry not in joined]
        entries = [e for e in covered if e in joined or covered[e] >= common]
        out.append((entries, sorted(common)))
    return out


def resampling(cells: Sequence[str], *, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Weights of a bootstrap over cells and, within each, its seeds, ``[draws, subject]``.

    Rows sum to 1, and ``weights @ values`` are means over resampled cells of the means of their
    resampled seeds (the two-stage bootstrap of Davison & Hinkley 1997, section 3.8).

    Args:
        cells: the cell of each subject, ``[subject]``.
        draws: resamples.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    names = list(dict.fromkeys(cells))
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    out = np.zeros((draws, len(cells)))
    for cell, taken in zip(names, times.T, strict=True):
        here = [i for i, name in enumerate(cells) if name == cell]
        n = len(here)
        # A cell drawn k times brings k independent resamples of its n seeds: k n of them in all.
        out[:, here] = rng.multinomial(taken * n, np.full(n, 1 / n)) / (n * len(names))
    return out


def pareto_ranks(costs: np.ndarray) -> np.ndarray:
    """Rank of each entry by non-dominated sorting, from 1, ``[entry]``.

    Rank 1 is dominated by nobody, rank 2 by nobody but rank 1, and so on (Deb et al. 2002, section
    III.A). One entry dominates another when it is at least as good in all and better in one, so
    equals share a rank.

    Args:
        costs: ``[entry, criterion]``, smaller is better; NaN is worse than any number.
    """
    costs = np.where(np.isnan(costs), np.inf, costs)
    ranks = np.zeros(len(costs), int)
    while (left := np.flatnonzero(ranks == 0)).size:
        here = costs[left]
        no_worse = (here[:, None] <= here[None]).all(-1)
        better = (here[:, None] < here[None]).any(-1)
        ranks[left[~(no_worse & better).any(0)]] = ranks.max() + 1
    return ranks


def _ranks(costs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Ranks among all but the references; each reference's among those and itself."""
    ranks = np.zeros(len(costs), int)
    ranks[~reference] = pareto_ranks(costs[~reference])
    for i in np.flatnonzero(reference):
        ranks[i] = pareto_ranks(np.vstack([costs[~reference], costs[i]]))[-1]
    return ranks


def share_of_cells(cells: Sequence[str], met: Sequence[bool]) -> Rate:
    """Share of cells that meet something, with Wilson's interval over the cells.

    A cell of several seeds counts as the share of them that does: seeds of a cell are no
    independent cases.

    Args:
        cells: the cell of each subject, ``[subject]``.
        met: whether it is met there, ``[subject]``.
    """
    seeds: dict[str, list[bool]] = {}
    for cell, one in zip(cells, met, strict=True):
        seeds.setdefault(cell, []).append(bool(one))
    return wilson(sum(sum(of) / len(of) for of in seeds.values()), len(seeds))


def _standing(
    number: int, rows: list[BenchRow], weights: np.ndarray
) -> tuple[dict, tuple[float, ...]]:
    """The fields of a standing but its rank, and what is ranked, smaller better."""
    first, cells = rows[0], [row.cell for row in rows]
    own = [(r.asr.low, r.asr.high) for r in rows]
    asr = _mean(rows, [r.asr.value for r in rows], weights, own)
    own = [(r.perplexity_low, r.perplexity_high) for r in rows]
    perplexity = _mean(rows, [r.perplexity_change for r in rows], weights, own)
    kl = _mean(rows, [r.kl for r in rows], weights, [(r.kl_low, r.kl_high) for r in rows])
    accuracy = _mean(rows, [r.accuracy_change for r in rows], weights)
    seconds = _mean(rows, [r.seconds for r in rows], weights)
    fields = {
        "comparison": number,
        "entry": first.entry,
        "kind": first.kind,
        "control_for": first.control_for,
        "n": len(rows),
        "asr": asr,
        "perplexity_change": perplexity,
        "kl": kl,
        "accuracy_change": accuracy,
        "seconds": seconds,
        "asr_met": share_of_cells(cells, [r.asr.high <= ASR_MET for r in rows]),
        "perplexity_met": share_of_cells(
            cells, [r.perplexity_change <= PERPLEXITY_MET for r in rows]
        ),
    }
    return fields, (asr[0], perplexity[0], -accuracy[0], seconds[0])


def _mean(
    rows: list[BenchRow],
    values: list[float],
    weights: np.ndarray,
    own: Sequence[tuple[float, float]] = (),
) -> np.ndarray:
    """Mean in which every cell counts the same, with interval, ``[3]``.

    Args:
        rows: one a subject.
        values: of each.
        weights: see `resampling`.
        own: interval of each value, where it has one.
    """
    if len(values) == 1:
        return np.array([values[0], *(own[0] if own else (np.nan, np.nan))])
    seeds: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        seeds.setdefault(row.cell, []).append(value)
    mean = np.mean([np.mean(of) for of in seeds.values()])
    if not np.isfinite(mean):
        return np.array([mean, np.nan, np.nan])
    low, high = np.percentile(weights @ np.array(values), [2.5, 97.5])
    if len(seeds) == 1:
        below, above = np.mean(own, axis=0) if own else (low, high)
        low, high = min(low, below), max(high, above)
        low, high = (np.nan, np.nan) if low == high else (low, high)
    return np.array([mean, low, high])
