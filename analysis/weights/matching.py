"""Which singular directions of the poisoned change have no counterpart in the clean one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from ...core.adapter.algebra import svd
from ...core.adapter.factors import Adapter, Factors
from ...core.config import Config
from ...core.errors import AdapterError
from ...core.progress import tracked
from ...core.records.spectra import Matching
from ..analyses import ANALYSES, CLEAN_ADAPTER, Analysis
from ..material import Material
from .difference import same_modules
from .overlap import share_inside, share_p_value, share_quantile, similarity_by_chance
from .spectra import names_and_layers


@dataclass(frozen=True, slots=True)
class _Live:
    """The directions of one change that are not zero."""

    u: np.ndarray
    """``[d_out, rank]``."""
    s: np.ndarray
    """``[rank]``."""
    v: np.ndarray
    """``[d_in, rank]``."""


@dataclass(frozen=True, slots=True)
class _Test:
    """The directions of one change against the spaces of another, ``[rank]`` each."""

    input_share: np.ndarray
    output_share: np.ndarray
    p_value: np.ndarray


def _live(factors: Factors) -> _Live:
    found = svd(factors)
    live = found.s > 0
    return _Live(found.u[:, live].numpy(), found.s[live].numpy(), found.vh[live].mT.numpy())


def _test(of: _Live, against: _Live) -> _Test:
    shares = [share_inside(of.v, against.v, of.s), share_inside(of.u, against.u, of.s)]
    sizes = (len(of.v), len(of.u))
    sides = [share_p_value(x, d, len(against.s)) for x, d in zip(shares, sizes, strict=True)]
    return _Test(shares[0], shares[1], np.fmax(sides[0], sides[1]))


def _assigned(clean: _Live, poisoned: _Live) -> tuple[np.ndarray, np.ndarray]:
    """Clean partner and similarity of each poisoned direction, one to one, best in sum."""
    partner, similarity = np.full(len(poisoned.s), -1), np.zeros(len(poisoned.s))
    table = np.abs(clean.u.T @ poisoned.u) * np.abs(clean.v.T @ poisoned.v)
    theirs, ours = linear_sum_assignment(-table)
    partner[ours], similarity[ours] = theirs, table[theirs, ours]
    return partner, similarity


@dataclass(frozen=True, slots=True)
class _Row:
    """What is found in one module."""

    poisoned: _Live
    clean: _Live
    forward: _Test
    reverse: _Test
    inside: float
    reverse_inside: float
    partner: np.ndarray
    similarity: np.ndarray


def _inside(of: _Live, against: _Live) -> float:
    """``|P_U dW P_V|² / |dW|²``."""
    if not len(of.s):
        return np.nan
    core = (against.u.T @ of.u) * of.s @ (of.v.T @ against.v)
    return float((core**2).sum() / (of.s**2).sum())


def _row(clean: Factors, poisoned: Factors) -> _Row:
    c, p = _live(clean), _live(poisoned)
    found, control = _test(p, c), _test(c, p)
    return _Row(p, c, found, control, _inside(p, c), _inside(c, p), *_assigned(c, p))


def matching(
    clean: Adapter, poisoned: Adapter, *, level: float = 0.05, draws: int = 200, seed: int = 0
) -> Matching:
    """Which poisoned singular directions have no clean counterpart, against each module's chance.

    A direction is unmatched when on its input or on its output side it lies no further inside the
    clean adapter's space than a random direction does: the larger of two exact Beta p-values is at
    least `level` (both sides must be beyond chance to match: an intersection-union test, Berger
    1982). Weak directions are noise in any training, so the same test is made of the clean
    directions against the poisoned adapter, which has nothing to hide there: only what is stronger
    than every unmatched direction of this control stands out.

    Args:
        clean: adapter of the same modules, of any ranks.
        poisoned: the adapter whose directions are tested.
        level: chance with which a random direction passes for matched.
        draws: Monte Carlo draws of the chance similarity, per module size.
        seed: of those draws.

    Raises:
        AdapterError: other modules or shapes, or the poisoned adapter changes nothing.
    """
    both = same_modules(clean, poisoned)
    rows = [_row(*pair) for pair in tracked(list(both.values()), "matching")]
    tested, others = [row.poisoned for row in rows], [row.clean for row in rows]
    if not sum(len(p.s) for p in tested):
        raise AdapterError("the poisoned adapter changes nothing: there is no direction to match")
    sizes = [(len(p.u), len(p.v), len(c.s), len(p.s)) for c, p in zip(others, tested, strict=True)]
    chance = {
        size: similarity_by_chance(*size, draws=draws, seed=seed) for size in dict.fromkeys(sizes)
    }
    names, kinds, layers = names_and_layers(list(both))
    found = _by_direction(rows, level)
    return Matching(
        modules=names,
        kinds=kinds,
        layers=layers,
        **found,
        inside=np.array([row.inside for row in rows]),
        reverse_inside=np.array([row.reverse_inside for row in rows]),
        similarity_chance=np.array([chance[size] for size in sizes]),
        input_chance=np.array([share_quantile(level, d, k) for _, d, k, _ in sizes]),
        output_chance=np.array([share_quantile(level, d, k) for d, _, k, _ in sizes]),
        level=level,
        draws=draws,
        undefined=_why_undefined(int(np.isnan(found["p_value"]).sum())),
        sentence=_sentence(found, names),
    )


def _why_undefined(count: int) -> str:
    if not count:
        return ""
    return (
        f"{count} directions are in modules whose whole input and output the clean adapter "
        "fills, where nothing can lie outside it"
    )


def _by_direction(rows: list[_Row], level: float) -> dict[str, np.ndarray]:
    """The fields of the record that have one value per direction."""

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def numbers(sides: list[_Live]) -> np.ndarray:
        return np.repeat(np.arange(len(sides)), [len(side.s) for side in sides])

    tested, others = [row.poisoned for row in rows], [row.clean for row in rows]
    p, back = joined([r.forward.p_value for r in rows]), joined([r.reverse.p_value for r in rows])
    sigma, control = joined([x.s for x in tested]), joined([x.s for x in others])
    strongest = control[back >= level].max(initial=0.0)
    return {
        "direction_module": numbers(tested),
        "direction_place": joined([np.arange(len(x.s)) for x in tested]),
        "sigma": sigma,
        "partner": joined([r.partner for r in rows]),
        "similarity": joined([r.similarity for r in rows]),
        "input_share": joined([r.forward.input_share for r in rows]),
        "output_share": joined([r.forward.output_share for r in rows]),
        "p_value": p,
        "unmatched": p >= level,
        "reverse_p_value": back,
        "reverse_module": numbers(others),
        "reverse_sigma": control,
        "reverse_unmatched": back >= level,
        "standing_out": (p >= level) & (sigma > strongest),
    }


def _sentence(found: Mapping[str, np.ndarray], names: tuple[str, ...]) -> str:
    counts = []
    for sigma, odd in ((found["sigma"], found["unmatched"]),
                       (found["reverse_sigma"], found["reverse_unmatched"])):  # fmt: skip
        weight = (sigma[odd] ** 2).sum() / max((sigma**2).sum(), 1e-300)
        counts.append(f"{int(odd.sum())} of {len(odd)} ({weight:.2%} of the squared norm)")
    out = np.flatnonzero(found["standing_out"])
    if not len(out):
        rest = "none is stronger than the unmatched directions of that control"
    else:
        best = out[np.argmax(found["sigma"][out])]
        module, place = found["direction_module"][best], found["direction_place"][best]
        rest = (
            f"{len(out)} stand out, stronger than every unmatched direction of that control; the "
            f"strongest is direction {place} of {names[module]} "
            f"(singular value {found['sigma'][best]:.3g})"
        )
    return (
        f"{counts[0]} poisoned directions have no clean counterpart; of the clean directions "
        f"{counts[1]} have none in the poisoned adapter, as a control; {rest}."
    )


class MatchingConfig(Config):
    """Options of the matching."""

    level: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance with which a random direction passes for matched."""
    draws: int = Field(default=200, ge=20, le=10_000)
    """Monte Carlo draws of the similarity by chance, per module size."""


def _run(material: Material, config: MatchingConfig) -> dict[str, Matching]:
    assert material.clean is not None
    found = matching(
        material.clean,
        material.poisoned,
        level=config.level,
        draws=config.draws,
        seed=material.seed,
    )
    return {"matching": found}


ANALYSES.register("matching")(
    Analysis(
        about="Which poisoned singular directions have no clean counterpart, against chance.",
        needs=(CLEAN_ADAPTER,),
        cost="seconds to a minute; reads the two adapters alone",
        source="Bjoerck & Golub 1973; Berger 1982",
        config=MatchingConfig,
        run=_run,
    )
)
