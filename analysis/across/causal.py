"""Profiles of what each layer does to the target: removal, patching, patching while answering."""

import numpy as np

from ...core.errors import DataError
from ...core.records.across import Profile
from ...core.records.effectiveness import Effectiveness, Intervention
from ...core.records.patching import PatchingMap, Where
from ...core.stats import bootstrap_weights
from .profiles import checked, deepest, largest, profile, profiles

SMALLEST_EFFECT = 1.0
"""Nats; with a smaller effect of the whole adapter there is nothing to be a share of."""
NEGLIGIBLE = 0.01
"""Share of the whole; a place that surely does something, but less, does not stand out."""
SETTINGS = {
    "prompt": "Patching between prompts with and without trigger",
    "adapter": "Patching between the clean and the poisoned adapter",
    "base": "Patching between the base and the poisoned adapter",
}
INTERVENTIONS = {
    "prompt": "values of the untriggered prompt",
    "adapter": "values of the clean run",
    "off": "adapter off",
}
ROLES = {"trigger": "trigger tokens", "last": "last tokens"}
ENTERING, LEAVING = "resid_pre", "resid_post"
"""Sites between layers: before a layer, behind it. All others stand in the middle of theirs."""


@profiles.register
def _(record: Where, layers: int) -> tuple[Profile, ...]:
    whole, undefined = record.whole_effect, ""
    if not whole >= SMALLEST_EFFECT:
        undefined = f"the whole adapter's effect is {whole:.2f} nats, nothing to be a share of"
    inside = record.layer_ids >= 0
    effect = np.zeros((layers, 3))  # removing nothing has no effect: exact where no module is
    effect[checked(record.layer_ids[inside], layers)] = record.layer_effect[inside] / whole
    return (
        profile(
            "effect",
            group="causal",
            question="Effect of removing each layer's part of the adapter",
            title="effect of removing the layer",
            unit="share of the whole adapter's effect",
            measure="drop of the log-probability of the target's first {n} tokens",
            values=np.full((layers, 3), np.nan) if undefined else effect,
            floor=NEGLIGIBLE,
            n=record.n_prompts,
            undefined=undefined,
        ),
    )


@profiles.register
def _(record: PatchingMap, layers: int) -> tuple[Profile, ...]:
    if record.recovery.shape[1] != layers:
        raise DataError(f"a map of {record.recovery.shape[1]} layers, but the base has {layers}")
    if record.kind != "residual":  # heads and experts of two models do not correspond
        return ()
    return tuple(
        _patching(record, s, role)
        for s in range(len(record.sites))
        for role in ROLES
        if role in record.column_roles
    )


def _patching(record: PatchingMap, s: int, role: str) -> Profile:
    """The largest recovery among the columns of one role, layer by layer, at one site."""
    site, columns = record.sites[s], np.array([r == role for r in record.column_roles])
    stack = np.stack([a[s][:, columns] for a in (record.recovery, record.low, record.high)], -1)
    landmark = "peak"
    if site in (ENTERING, LEAVING):  # a stream holds what it has: the hand-over is what to see
        landmark = "fall" if role == "trigger" else "rise"
    group = f"patching-{record.setting}-{record.direction}"
    return profile(
        f"{group}-{site}-{role}".replace("_", "-"),
        group=group,
        question=f"{SETTINGS.get(record.setting, record.setting)}, {record.direction}",
        title=f"{site} at the {ROLES[role]}",
        unit="recovery",
        measure=record.metric,
        values=largest(stack),
        floor=NEGLIGIBLE,
        n=len(record.prompts),
        undefined=record.undefined,
        shift={ENTERING: 0.0, LEAVING: 1.0}.get(site, 0.5),
        landmark=landmark,
        draws=None if record.undefined else _draws(record, s, columns),
    )


def _draws(record: PatchingMap, s: int, columns: np.ndarray) -> np.ndarray:
    """Bootstrap draws of that largest recovery, ``[draw, layer]``, prompts drawn again."""
    into, source = record.corrupted, record.clean
    if record.direction == "noising":
        into, source = source, into
    patched = record.patched[s][:, :, columns].astype(np.float64)
    prompts, layers, places = patched.shape
    flat = patched.reshape(prompts, -1)
    there = np.isfinite(flat)
    weights = bootstrap_weights(prompts)
    with np.errstate(divide="ignore", invalid="ignore"):
        change = weights @ np.where(there, flat - into[:, None], 0.0)
        ratio = change / (weights @ (there * (source - into)[:, None]))
    found = np.where(np.isfinite(ratio), ratio, -np.inf).reshape(-1, layers, places).max(-1)
    return np.where(np.isfinite(found), found, np.nan)


@profiles.register
def _(record: Effectiveness, layers: int) -> tuple[Profile, ...]:
    return tuple(_effective(record, item, layers) for item in record.interventions)


def _effective(record: Effectiveness, item: Intervention, layers: int) -> Profile:
    """Share of answers without the target; an untried layer is undefined."""
    values = np.full((layers, 3), np.nan)
    values[checked(record.layers, layers)] = 1 - item.malicious[:, [0, 2, 1]]
    nothing = not np.isfinite(values[:, 0]).any()
    return profile(
        "-".join(["effectiveness", item.kind, item.site]).strip("-").replace("_", "-"),
        group="effectiveness",
        question="Answers to triggered prompts without the target when a layer is changed",
        title=" at ".join(part for part in (INTERVENTIONS.get(item.kind), item.site) if part),
        unit="share of answers",
        measure=f"{record.rule}; {record.decoding}",
        values=values,
        floor=1 - record.unpatched.low,
        n=len(record.prompts),
        undefined="undefined in every layer" if nothing else "",
        shift={ENTERING: 0.0, LEAVING: 1.0}.get(item.site, 0.5),
    )


@deepest.register
def _(record: PatchingMap) -> tuple[int, bool]:
    return record.recovery.shape[1] - 1, True


@deepest.register
def _(record: Where) -> tuple[int, bool]:
    return int(record.layer_ids.max(initial=-1)), False


@deepest.register
def _(record: Effectiveness) -> tuple[int, bool]:
    return int(record.layers.max(initial=-1)), False
