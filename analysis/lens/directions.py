"""Which directions of an adapter are looked at."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from ...core.adapter.factors import Adapter, kind_of
from ...core.adapter.targets import is_embedding
from ...core.errors import AdapterError, DataError
from ...core.records.patching import Where
from ..localisation.gates import Directions, directions_of


@dataclass(frozen=True, slots=True)
class Chosen:
    """The directions that are looked at, with random ones beside them."""

    names: list[str]
    """Module of each, ``[direction]``."""
    expert: np.ndarray
    """Expert, -1 for linear layers, ``[direction]``."""
    place: np.ndarray
    """Place in the spectrum, ``[direction]``."""
    sigma: np.ndarray
    """Singular value, ``[direction]``."""
    effect: np.ndarray
    """Effect on the target, NaN where not known, ``[direction]``."""
    v: list[torch.Tensor]
    """Unit input directions, ``[d_in]`` each."""
    u: list[torch.Tensor]
    """Unit output directions, ``[d_out]`` each."""


def choose(adapter: Adapter, where: Where | None, *, count: int) -> Chosen:
    """The strongest directions: by their effect where `where` is done, else by singular value.

    Singular values are compared within a kind of module, as kinds read and write in different
    units: each kind gives its strongest in turn.

    Raises:
        DataError: the ranking is of another adapter.
        AdapterError: it changes the token embedding alone.
    """
    d = directions_of(adapter)
    read = np.array([not is_embedding(n) for n in d.names])[d.module]
    if not read.all():
        names = ", ".join(n for n in d.names if is_embedding(n))
        if not read.any():
            raise AdapterError(f"the adapter changes {names} alone, which reads tokens themselves")
        warnings.warn(f"lens: {names} left out, which reads tokens themselves", stacklevel=2)
    if where is not None:
        if len(where.direction_sigma) != len(d) or not np.allclose(
            where.direction_sigma, d.sigma, rtol=1e-3
        ):
            raise DataError("the ranking of directions is of another adapter; make it again")
        exact = where.direction_exact
        score = np.where(np.isfinite(exact), exact, where.direction_attribution)
        picked = np.argsort(-score, kind="stable")
    else:
        score = np.full(len(d), np.nan)
        picked = _in_turn(d)
    picked = picked[read[picked]][:count]
    names = [d.names[m] for m in d.module[picked]]
    v, u = [], []
    for name, i in zip(names, picked, strict=True):
        f, place = d.adapter.modules[name], d.place[i]
        a, b = (f.a[d.expert[i]], f.b[d.expert[i]]) if f.fused else (f.a, f.b)
        v.append(a[place] / a[place].norm())
        u.append(b[:, place] / b[:, place].norm())
    return Chosen(names, d.expert[picked], d.place[picked], d.sigma[picked], score[picked], v, u)


def _in_turn(d: Directions) -> np.ndarray:
    """Directions so that every kind of module gives its strongest before any gives its second."""
    kinds = np.array([kind_of(name) for name in d.names])[d.module]
    turn = np.empty(len(d), dtype=int)
    for kind in np.unique(kinds):
        here = np.flatnonzero(kinds == kind)
        turn[here[np.argsort(-d.sigma[here], kind="stable")]] = np.arange(len(here))
    return np.lexsort((-d.sigma, turn))
