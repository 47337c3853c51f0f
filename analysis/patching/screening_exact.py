"""Which screened cells are patched exactly, their effects, and how close gradients come."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...core.model.subject import Attached, Subject
from ...core.records.patching import ScreeningAgreement
from ...core.stats import bootstrap_weights, percentiles, wilson
from .engine.batching import MemoryBudget
from .engine.runs import Sweep
from .engine.sweep import sweep
from .sites import Place

OVERHEAD = 8
"""What a sweep costs besides its cells (both runs, everything patched, its checks), in cells."""
DRAWS = 1000
"""Of the bootstrap over cells."""


@dataclass(slots=True)
class Checked:
    """The exact effects of some cells."""

    effect: np.ndarray
    """``[site, prompt, layer, column]``; NaN where not checked."""
    computed: int = 0
    """Patched runs of one prompt."""
    self_error: float = 0.0
    """Largest of the sweeps."""
    loop_error: float = 0.0
    """Largest of the sweeps."""


def means(values: np.ndarray) -> np.ndarray:
    """Mean of each cell over the prompts that have it, with its bootstrap interval.

    Args:
        values: ``[site, prompt, layer, column]``, NaN where a prompt has no such cell.

    Returns:
        ``[site, layer, column, (value, low, high)]``.
    """
    by_prompt = np.moveaxis(values, 1, 0)
    flat = by_prompt.reshape(len(by_prompt), -1)
    there = np.isfinite(flat)
    weights, clean = bootstrap_weights(len(flat)), np.where(there, flat, 0.0)
    out = np.full((flat.shape[1], 3), np.nan)
    some = there.any(0)
    with np.errstate(invalid="ignore", divide="ignore"):  # a draw without a prompt that has it
        drawn = (weights @ clean[:, some]) / (weights @ there[:, some])
    out[some, 0] = clean[:, some].sum(0) / there[:, some].sum(0)
    if some.any():
        out[some, 1:] = percentiles(drawn, [2.5, 97.5]).T
    return out.reshape(*by_prompt.shape[1:], 3)


def picked_cells(
    strength: np.ndarray, differs: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The strongest cells, and as many random ones of the others, ``[site, layer, column]`` each.

    Args:
        strength: magnitude of the screened effect.
        differs: cells in which anything differs; the effect of the others is exactly 0.
        count: of each kind.
        seed: of the random ones.
    """
    cells = np.flatnonzero(differs)
    order = cells[np.argsort(-strength.ravel()[cells], kind="stable")]
    others = np.random.default_rng(seed).permutation(order[count:])[:count]
    top, random = np.zeros(differs.size, bool), np.zeros(differs.size, bool)
    top[order[:count]], random[others] = True, True
    return top.reshape(differs.shape), random.reshape(differs.shape)


def boxes(cells: np.ndarray) -> list[tuple[set[int], set[int], set[int]]]:
    """Products of sites, layers and columns that together hold some cells and few besides.

    Args:
        cells: ``[cell, (site, layer, column)]``.
    """
    rows: dict[tuple[int, int], set[int]] = {}
    for site, layer, column in cells.tolist():
        rows.setdefault((layer, site), set()).add(column)
    found: list[tuple[set[int], set[int], set[int]]] = []
    for (layer, site), columns in sorted(rows.items(), key=lambda kv: (sorted(kv[1]), kv[0])):
        new = ({site}, {layer}, columns)
        joined = [(a | {site}, b | {layer}, c | columns) for a, b, c in found]
        extra = [_size(both) - _size(old) for both, old in zip(joined, found, strict=True)]
        best = int(np.argmin(extra)) if extra else -1
        if best >= 0 and extra[best] <= _size(new) + OVERHEAD:
            found[best] = joined[best]
        else:
            found.append(new)
    return found


def _size(box: tuple[set[int], ...]) -> int:
    return int(np.prod([len(side) for side in box]))


def patched_cells(
    subject: Subject,
    attached: Attached,
    what: Sweep,
    found: Sequence[Place],
    wanted: np.ndarray,
    *,
    memory: MemoryBudget,
    label: str,
) -> Checked:
    """The exact effects of the wanted cells.

    Args:
        subject: the model.
        attached: its adapters.
        what: the sweep over all columns.
        found: what is patched, ``[site]``.
        wanted: ``[site, layer, column]`` booleans.
        memory: what it may take.
        label: for the progress bar.
    """
    count = len(what.targets)
    out = Checked(np.full((len(found), count, *wanted.shape[1:]), np.nan))
    for box in boxes(np.argwhere(wanted)):
        sites, layers, columns = (sorted(side) for side in box)
        part = replace(what, columns=[[row[c] for c in columns] for row in what.columns])
        chosen = [found[site] for site in sites]
        done = sweep(subject, attached, part, chosen, memory=memory, layers=layers, label=label)
        effect = done.patched - done.into[None, :, None, None]
        for i, site in enumerate(sites):
            for layer in layers:
                for j, column in enumerate(columns):
                    if wanted[site, layer, column]:
                        out.effect[site, :, layer, column] = effect[i, :, layer, j]
        out.computed += done.computed
        out.self_error = max(out.self_error, done.self_error)
        out.loop_error = max(out.loop_error, done.loop_error)
    return out


def agreements(
    attribution: np.ndarray,
    integrated: np.ndarray,
    exact: np.ndarray,
    top: np.ndarray,
    random: np.ndarray,
) -> tuple[ScreeningAgreement, ...]:
    """How close both ways come to the exact effects, on all checked cells and on the random ones.

    Args:
        attribution: first-order effects, ``[site, layer, column]``.
        integrated: integrated effects, likewise.
        exact: exact effects with their intervals, ``[site, layer, column, (value, low, high)]``.
        top: the cells that were checked for their strength, ``[site, layer, column]`` booleans.
        random: those drawn at random, likewise.
    """
    return tuple(
        _agreement(method, cells, values[where], exact[where])
        for cells, where in (("checked", top | random), ("random", random))
        for method, values in (("attribution", attribution), ("integrated", integrated))
    )


def _agreement(
    method: str, cells: str, guessed: np.ndarray, exact: np.ndarray
) -> ScreeningAgreement:
    exact, low, high = exact.T
    n, moved = len(exact), (low > 0) | (high < 0)
    interval = np.full(2, np.nan)
    value = float(_spearman(guessed[None], exact[None])[0]) if n > 2 else np.nan
    if np.isfinite(value):
        drawn = np.random.default_rng(0).integers(n, size=(DRAWS, n))
        draws = _spearman(guessed[drawn], exact[drawn])
        interval = np.nanpercentile(draws, [2.5, 97.5])
    total = np.abs(exact).sum()
    right = np.sign(guessed[moved]) == np.sign(exact[moved])
    return ScreeningAgreement(
        method=method,
        cells=cells,
        n=n,
        spearman=value,
        low=float(interval[0]),
        high=float(interval[1]),
        error=float(np.abs(guessed - exact).sum() / total) if total else np.nan,
        signs=wilson(int(right.sum()), len(right)) if len(right) else None,
    )


def _spearman(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Rank correlation of each row, ``[row]``; NaN where one side is constant."""
    from scipy.stats import rankdata

    a, b = (rankdata(x, axis=1) - (x.shape[1] + 1) / 2 for x in (one, other))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def sentence_of(
    agreement: Sequence[ScreeningAgreement],
    exact: np.ndarray,
    sites: Sequence[str],
    columns: Sequence[str],
    prompts: int,
    passes: Sequence[int],
    all_cells: int,
) -> str:
    """The finding in words, with its numbers."""
    if not np.isfinite(exact).any():
        return f"On {prompts} prompts nothing differs between the two runs: there is no effect."
    every, random = (
        {a.method: a for a in agreement if a.cells == cells} for cells in ("checked", "random")
    )
    ways = {"attribution": "first-order attribution", "integrated": "integrated gradients"}
    ranks = " and ".join(
        f"{_correlation(every[m])} for {name} ({_number(random[m].spearman)} on the random ones)"
        for m, name in ways.items()
    )
    best = int(np.nanargmax(np.abs(exact[..., 0])))
    site, layer, column = (int(i) for i in np.unravel_index(best, exact.shape[:3]))
    value, low, high = exact[site, layer, column]
    return (
        f"On {prompts} prompts the strongest of {every['integrated'].n} exactly patched cells is "
        f"{sites[site]} at layer {layer}, {columns[column]!r}: it moves the metric by "
        f"{value:.2f} (95 % interval {low:.2f} to {high:.2f}). Rank correlation with the exact "
        f"effects: {ranks}. Half of these cells, at least, were picked by integrated gradients, so "
        f"that the random ones are the fairer test. Cost: {passes[0]:,} forward and backward passes"
        f" for attribution, {passes[1]:,} for integrated gradients, {passes[2]:,} patched runs for "
        f"the checked cells; all cells would be {all_cells:,} patched runs."
    )


def _correlation(found: ScreeningAgreement) -> str:
    if np.isnan(found.spearman):
        return "undefined"
    return f"{found.spearman:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.2f}"
