"""Profiles along depth: how records become profiles, and where each has its landmark."""

from functools import singledispatch
from typing import Any

import numpy as np

from ...core.errors import DataError
from ...core.records.across import Landmark, Profile


@singledispatch
def profiles(record: Any, layers: int) -> tuple[Profile, ...]:
    """The profiles of a record, by layer; none when it has no layers.

    Args:
        record: of any analysis; another class of records is added by registering a function here.
        layers: of the base, at least 1.

    Raises:
        DataError: the record has a layer that the base does not have.
    """
    return ()


@singledispatch
def deepest(record: Any) -> tuple[int, bool]:
    """The highest layer in a record, -1 for none, and whether that is the base's last."""
    return -1, False


def profile(
    key: str,
    *,
    values: np.ndarray,
    shift: float = 0.5,
    landmark: str = "peak",
    draws: np.ndarray | None = None,
    floor: float,
    **words: Any,
) -> Profile:
    """A profile with its landmark from ``[layer, (value, low, high)]``."""
    layers = len(values)
    depth = (np.arange(layers) + shift) / layers
    return Profile(
        key=key,
        layer=np.arange(layers),
        depth=depth,
        value=values[:, 0],
        low=values[:, 1],
        high=values[:, 2],
        floor=floor,
        landmark=landmark_of(depth, values, floor=floor, kind=landmark, draws=draws),
        **words,
    )


def landmark_of(
    depth: np.ndarray, values: np.ndarray, *, floor: float, kind: str, draws: np.ndarray | None
) -> Landmark:
    """Depth of a profile's landmark with its 95 % band.

    Args:
        depth: ``[layer]``.
        values: value, low and high, ``[layer, 3]``.
        floor: the value that means nothing.
        kind: ``peak``, ``rise`` or ``fall``.
        draws: the profile with prompts drawn again, ``[draw, layer]``; without, the band holds
            every layer whose interval reaches that of the peak.
    """
    value, low, high = values.T
    known = np.isfinite(value)
    size = float(value[known].max()) if known.any() else np.nan

    def mark(at: float, how: str, near: float = np.nan, far: float = np.nan) -> Landmark:
        return Landmark(kind=kind, top=size, depth=at, low=near, high=far, how=how)

    if not known.any():
        return mark(np.nan, "no defined value")
    top = int(np.nanargmax(value))
    if low[top] <= floor or value[top] == np.nanmin(value):
        return mark(np.nan, "nothing stands out")
    at = float(depth[_index(value[None], kind)[0]])
    if draws is not None:
        kept = draws[np.isfinite(draws).any(1)]
        ends = np.quantile(depth[_index(kept, kind)], [0.025, 0.975], method="inverted_cdf")
        how = "bootstrap over prompts"
    elif np.isfinite(low[top]):
        ends = depth[np.flatnonzero(high >= low[top])[[0, -1]]]
        how = "layers whose interval reaches the peak's"
    else:
        return mark(at, "exact, without interval")
    near, far = np.clip([ends[0] - 0.5 / len(depth), ends[1] + 0.5 / len(depth)], 0, 1)
    return mark(at, how, float(near), float(far))


def _index(rows: np.ndarray, kind: str) -> np.ndarray:
    """Layer of the landmark in each row, ``[row]``; each row has a finite value."""
    filled = np.where(np.isfinite(rows), rows, -np.inf)
    if kind == "peak":
        return filled.argmax(1)
    top = filled.max(1, keepdims=True)
    half = filled >= np.minimum(top, top / 2)
    return half.argmax(1) if kind == "rise" else half.shape[1] - 1 - half[:, ::-1].argmax(1)


def largest(stack: np.ndarray) -> np.ndarray:
    """Of ``[layer, part, (value, low, high)]`` the part of the largest value in each layer."""
    best = np.argmax(np.nan_to_num(stack[..., 0], nan=-np.inf), axis=1)
    return stack[np.arange(len(best)), best]


def checked(at: np.ndarray, layers: int) -> np.ndarray:
    """Layer numbers, none of them beyond the base.

    Raises:
        DataError: it has no such layer.
    """
    if at.size and at.max() >= layers:
        raise DataError(f"a record has layer {at.max()}, but the base has {layers} layers")
    return at
