"""Across runs: what models of different size have in common, at equal depth."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby
from typing import Any

import numpy as np

from ...core.errors import DataError
from ...core.records.across import Across, AcrossRun, Agreement, Landmark, Profile
from . import activations, causal, weights  # noqa: F401  (they register)
from .correlation import agreement, corrected
from .profiles import deepest, profiles

LEVEL = 0.05
"""False discovery rate of the findings about shapes."""
WIDEST = 0.5
"""Widest band that still tells where: half of the depth."""
TOUCH = 1e-9
"""Bands that only touch, of neighbouring layers, neither agree nor lie apart."""
LIKELY = 0.5
"""Bands that would meet more often than this wherever they lay agree on nothing."""
PHRASES = {
    "peak": "is strongest",
    "rise": "has risen to half of its maximum",
    "fall": "has fallen to half of its maximum",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAnalysis:
    """A finished analysis of a run."""

    name: str
    """Name of the analysis."""
    records: tuple[Any, ...]
    """Its records."""
    target_tokens: int | None = None
    """First tokens of the target behind its metrics, where known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSource:
    """What is known of one run."""

    name: str
    """Its name, different for each."""
    folder: str
    """Its folder, for the commands that are proposed."""
    base: str
    """The base model."""
    trigger: str
    """The trigger."""
    target: str
    """The target."""
    layers: int | None
    """Layers of the base, where its configuration can be read."""
    found: tuple[RunAnalysis, ...]
    """Its finished analyses."""


def across(sources: Sequence[RunSource], *, seed: int = 0) -> Across:
    """Profiles of each run along its depth, their agreement pair by pair, and what that supports.

    Args:
        sources: two runs or more.
        seed: of the rearrangements.

    Raises:
        DataError: fewer than two runs, a name used twice, or no profile that two runs share.
    """
    names = [source.name for source in sources]
    if len(sources) < 2 or len(set(names)) < len(names):
        raise DataError(f"two different runs or more are compared, not {', '.join(names)}")
    taken = [_take(source) for source in sources]
    undefined = [
        f"{t.source.name}, {p.question.lower()}: {p.undefined}"
        for t in taken
        for p in t.profiles
        if p.undefined
    ]
    taken, other = _same_measure(taken)
    taken, single = _shared(taken)
    keys = dict.fromkeys(p.key for t in taken for p in t.profiles)
    if not keys:
        raise DataError(_nothing_shared(sources, [*undefined, *other]))
    missing = _missing(sources)
    runs = tuple(_run(t, missing[t.source.name]) for t in taken)
    agreements = corrected(
        [
            agreement(one, two, first.name, second.name, seed=seed)
            for key in keys
            for first, second in combinations(runs, 2)
            if (one := _of(first, key)) and (two := _of(second, key))
        ]
    )
    lacking = [
        f"{s.name} lacks {', '.join(names)}: loratomy probe {s.folder} makes what it allows"
        for s in sources
        if (names := missing[s.name])
    ]
    guessed = [
        f"{t.source.name}: the base {t.source.base} could not be read, its number of layers is "
        f"taken as {t.layers}, {t.how}"
        for t in taken
        if t.guessed
    ]
    return Across(
        runs=runs,
        agreements=agreements,
        findings=(*(f for key in keys for f in _places(runs, key)), *_shapes(runs, agreements)),
        notes=tuple(dict.fromkeys([*lacking, *guessed, *undefined, *other, *single])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """A run with the profiles of its records."""

    source: RunSource
    layers: int
    how: str
    guessed: bool
    profiles: tuple[Profile, ...]


def _take(source: RunSource) -> _Taken:
    """The run's layers, counted, and its profiles."""
    deep = [deepest(record) for found in source.found for record in found.records]
    counts = {layer + 1 for layer, last in deep if last}
    if source.layers is not None:
        counts.add(source.layers)
    if len(counts) > 1:
        several = " and ".join(map(str, sorted(counts)))
        raise DataError(f"{source.name}: its records and its base have {several} layers")
    if counts:
        layers, how = counts.pop(), "its records or its base"
    else:
        layers = max((layer for layer, _ in deep), default=-1) + 1
        how = "the highest layer in its records"
    found: dict[str, Profile] = {}  # of two records of one kind the first, as in the report
    for part in source.found if layers else ():
        for record in part.records:
            for item in profiles(record, layers):
                found.setdefault(item.key, _with_tokens(item, part.target_tokens))
    guessed = bool(found) and how.startswith("the highest")
    return _Taken(
        source=source, layers=layers, how=how, guessed=guessed, profiles=tuple(found.values())
    )


def _with_tokens(profile: Profile, tokens: int | None) -> Profile:
    """The profile with the number of target tokens in its measure."""
    return replace(profile, measure=profile.measure.replace("{n}", str(tokens or "unknown")))


def _same_measure(taken: Sequence[_Taken]) -> tuple[list[_Taken], list[str]]:
    """Only profiles of the measure that most runs have, and what was left out; none undefined."""
    defined = [p for t in taken for p in t.profiles if not p.undefined]
    common = {
        key: Counter(p.measure for p in defined if p.key == key).most_common(1)[0][0]
        for key in {p.key for p in defined}
    }
    notes = [
        f"{t.source.name}: {p.question.lower()} left out, measured as {p.measure}, elsewhere as "
        f"{common[p.key]}"
        for t in taken
        for p in t.profiles
        if not p.undefined and p.measure != common[p.key]
    ]
    return [
        _keeping(t, [p for p in t.profiles if not p.undefined and p.measure == common[p.key]])
        for t in taken
    ], notes


def _shared(taken: Sequence[_Taken]) -> tuple[list[_Taken], list[str]]:
    """Only profiles that two runs have, and what was left out."""
    count = Counter(p.key for t in taken for p in t.profiles)
    notes = []
    for t in taken:
        alone = [p for p in t.profiles if count[p.key] < 2]
        for question in dict.fromkeys(p.question for p in alone):
            titles = "; ".join(p.title for p in alone if p.question == question)
            notes.append(f"{t.source.name} alone has {question.lower()}: {titles}")
    return [_keeping(t, [p for p in t.profiles if count[p.key] > 1]) for t in taken], notes


def _keeping(taken: _Taken, kept: Sequence[Profile]) -> _Taken:
    return replace(taken, profiles=tuple(kept))


def _missing(sources: Sequence[RunSource]) -> dict[str, tuple[str, ...]]:
    """Run -> the analyses with layers that another run has and it lacks."""
    useful = dict.fromkeys(
        found.name
        for source in sources
        for found in source.found
        if any(deepest(record)[0] >= 0 for record in found.records)
    )
    have = {source.name: {found.name for found in source.found} for source in sources}
    return {name: tuple(u for u in useful if u not in own) for name, own in have.items()}


def _nothing_shared(sources: Sequence[RunSource], reasons: Sequence[str]) -> str:
    have = "; ".join(
        f"{s.name} has {', '.join(f.name for f in s.found) or 'no analysis'}" for s in sources
    )
    why = f"; {'; '.join(dict.fromkeys(reasons))}" if reasons else ""
    return (
        f"these runs share no profile by layer ({have}{why}); make the same analyses in each, "
        f"e.g. loratomy probe {sources[-1].folder} --only spectra,where"
    )


def _run(taken: _Taken, missing: tuple[str, ...]) -> AcrossRun:
    source = taken.source
    return AcrossRun(
        name=source.name,
        base=source.base,
        trigger=source.trigger,
        target=source.target,
        layers=taken.layers,
        layers_from=taken.how,
        missing=missing,
        profiles=taken.profiles,
    )


def _of(run: AcrossRun, key: str) -> Profile | None:
    return next((p for p in run.profiles if p.key == key), None)


def _places(runs: Sequence[AcrossRun], key: str) -> list[str]:
    """Where a profile's landmark lies in the same band, or in bands apart; nothing otherwise."""
    found = [(run.name, p) for run in runs if (p := _of(run, key)) is not None]
    bands = [
        (name, p.landmark)
        for name, p in found
        if p.landmark.high - p.landmark.low <= WIDEST  # false for NaN
    ]
    if len(bands) < 2:
        return []
    profile = found[0][1]
    what = f"{profile.question}, {profile.title}: it {PHRASES[profile.landmark.kind]}"
    sizes = f" (in brackets: its largest {profile.unit})"
    apart = _components(bands)
    if len(apart) > 1:
        return [f"{what} {', but '.join(_extent(part) for part in apart)}{sizes}."]
    first, last = min(bands, key=lambda b: b[1].high), max(bands, key=lambda b: b[1].low)
    overlap = first[1].high - last[1].low
    if overlap < -TOUCH:
        return [f"{what} earlier in {_band(first)} than in {_band(last)}{sizes}."]
    if overlap <= TOUCH or len(bands) < len(found):
        return []
    chance = chance_to_meet([m.high - m.low for _, m in bands])
    if chance > LIKELY:
        return []
    return [
        f"{what} {_extent(bands)}{sizes}; bands this wide, placed at random, meet in "
        f"{100 * chance:.0f} % of cases."
    ]


def _components(bands: Sequence[tuple[str, Landmark]]) -> list[list[tuple[str, Landmark]]]:
    """The bands in groups of which none touches another, by depth."""
    out: list[list[tuple[str, Landmark]]] = []
    for item in sorted(bands, key=lambda b: b[1].low):
        if out and item[1].low <= max(mark.high for _, mark in out[-1]) + TOUCH:
            out[-1].append(item)
        else:
            out.append([item])
    return out


def _extent(bands: Sequence[tuple[str, Landmark]]) -> str:
    low, high = min(m.low for _, m in bands), max(m.high for _, m in bands)
    return f"between depth {low:.2f} and {high:.2f} in {' and '.join(map(_sized, bands))}"


def _band(item: tuple[str, Landmark]) -> str:
    mark = item[1]
    return f"{_sized(item)} (depth {mark.depth:.2f}, 95 % band {mark.low:.2f}–{mark.high:.2f})"


def _sized(item: tuple[str, Landmark]) -> str:
    name, mark = item
    return f"{name} [{mark.top:.2g}]"


def chance_to_meet(widths: Sequence[float], *, draws: int = 100_000) -> float:
    """Chance that bands of these widths share a point when each lies anywhere in 0 to 1."""
    low = np.random.default_rng(0).random((draws, len(widths))) * (1 - np.array(widths))
    return float((low.max(1) <= (low + np.array(widths)).min(1)).mean())


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _shapes(runs: Sequence[AcrossRun], agreements: Sequence[Agreement]) -> tuple[str, ...]:
    """Which profiles rise and fall together, as far as that is more than smoothness and chance."""
    titles = {p.key: p for run in runs for p in run.profiles}
    tested = sum(not item.undefined for item in agreements)
    kept = [item for item in agreements if item.q <= LEVEL]
    out = []
    for (first, second), group in groupby(
        sorted(kept, key=lambda a: (a.first, a.second)), key=lambda a: (a.first, a.second)
    ):
        parts = [
            f"{titles[a.key].question.lower()}, {titles[a.key].title} (rho {a.rho:.2f}, "
            f"n {a.n}, p {_p(a.p)})"
            for a in group
        ]
        out.append(
            f"{first} and {second} have profiles of the same shape (negative rho: opposite), "
            f"of {tested} correlations tested: {'; '.join(parts)}."
        )
    return tuple(out)
