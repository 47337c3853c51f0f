"""Profiles of the weight change: its share, its ranks, its difference from a clean one."""

import numpy as np

from ...core.records.across import Profile
from ...core.records.spectra import Difference, Spectra
from .profiles import checked, deepest, profile, profiles

SHARE = "share × layers (1: spread evenly)"
UNCHANGED = "the weights are unchanged, there is nothing to share"


@profiles.register
def _(record: Spectra, layers: int) -> tuple[Profile, ...]:
    found, who = record.by_layer, f"{record.adapter} adapter"
    inside = found.layers >= 0
    at, changed = checked(found.layers[inside], layers), found.stable_rank[inside] > 0
    empty = np.full(layers, np.nan)
    share, stable, relative = np.zeros(layers), empty.copy(), empty.copy()
    share[at] = found.share[inside] * layers  # a layer without modules has exactly none
    stable[at] = np.where(changed, found.stable_rank[inside], np.nan)
    relative[at] = found.relative_norm[inside]
    unchanged = "" if np.isfinite(share).all() else UNCHANGED
    out = [
        _weights(f"{record.adapter}-share", f"share of ‖dW‖², {who}", SHARE, share, unchanged),
        _weights(f"{record.adapter}-stable-rank", f"stable rank of the layer, {who}",
                 "directions", stable, unchanged),
    ]  # fmt: skip
    if np.isfinite(relative).any():
        title = f"‖dW‖ over ‖W‖, {who}"
        out.append(_weights(f"{record.adapter}-relative", title, "ratio", relative))
    return tuple(out)


@profiles.register
def _(record: Difference, layers: int) -> tuple[Profile, ...]:
    inside, squares = record.layers >= 0, record.difference_norm**2
    at, total = checked(record.layers[inside], layers), float(squares.sum())
    parts = np.bincount(at, squares[inside], minlength=layers) * layers
    shares = parts / total if total > 0 else np.full(layers, np.nan)
    title = "share of ‖dW poisoned − dW clean‖²"
    return (_weights("difference-share", title, SHARE, shares, "" if total > 0 else UNCHANGED),)


def _weights(key: str, title: str, unit: str, values: np.ndarray, undefined: str = "") -> Profile:
    return profile(
        f"weights-{key}",
        group="weights",
        question="Weight change",
        title=title,
        unit=unit,
        measure="",
        values=np.column_stack([values, np.full((len(values), 2), np.nan)]),
        floor=np.nan,
        n=0,
        undefined=undefined,
    )


@deepest.register(Spectra)
@deepest.register(Difference)
def _(record: Spectra | Difference) -> tuple[int, bool]:
    return int(record.layers.max(initial=-1)), False
