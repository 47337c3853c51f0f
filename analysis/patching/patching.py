"""Activation patching over layers x places: where does the target come from?

Denoising: values of the clean run are written into the corrupted one; noising: the reverse (Meng
et al. 2022, arXiv 2202.05262; Heimersheim & Nanda 2024, arXiv 2404.15255).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from ...core.errors import LoratomyError
from ...core.model.subject import Attached, Subject
from ...core.records.patching import PatchingMap
from ...core.stats import bootstrap_weights, mean_interval, percentiles, sign_flip_p
from ..analyses import ANALYSES, TRIGGER, Analysis
from ..material import Material
from .engine.batching import GIB, MemoryBudget
from .engine.cells import SweptCells
from .engine.sweep import sweep
from .pairs import Pair
from .planning import PatchingConfig, PlannedSweep, planned, run_names
from .sites import places

T = TypeVar("T")

KINDS = {"z": "heads", "lora": "modules", "experts": "experts", "router": "experts"}
"""Sites whose parts are many -> what a map of them is called."""


def patch(
    subject: Subject,
    attached: Attached,
    pairs: Sequence[Pair],
    *,
    clean: str | None,
    poisoned: str,
    setting: str,
    config: PatchingConfig,
) -> PatchingMap:
    """The patching map of one pair of runs.

    Args:
        subject: the model.
        attached: its adapters.
        pairs: triggered prompts with their untriggered twins.
        clean: adapter of the clean run; None: the base. Between prompts the same as `poisoned`.
        poisoned: adapter of the corrupted run.
        setting: ``prompt``, ``adapter`` or ``base``.
        config: sites, direction, metric, places, memory.

    Raises:
        DataError: no pairs, prompts that do not fit together, a token that does not exist.
        LoratomyError: a site, layer or metric that does not exist; not enough memory.
    """
    plan = planned(subject, pairs, clean, poisoned, setting, config)
    sites = tuple(s.strip() for s in config.sites.split(",") if s.strip())
    kinds = {KINDS.get(site, "residual") for site in sites}
    if len(kinds) != 1:
        raise LoratomyError(
            f"sites {config.sites!r} mix {' and '.join(sorted(kinds)) or 'nothing'}; hook points, "
            "z, lora, and experts,router are sweeps of their own"
        )
    at = places(subject, attached, sites)
    found = sweep(
        subject, attached, plan.what, at, memory=plan.memory, layers=plan.layers,
        label=f"patching ({setting})",
    )  # fmt: skip
    return _record(
        subject, pairs, plan, found, setting=setting, kind=kinds.pop(),
        names=run_names(setting, clean, poisoned), sites=tuple(p.label for p in at), config=config,
    )  # fmt: skip


def _record(
    subject: Subject,
    pairs: Sequence[Pair],
    plan: PlannedSweep,
    found: SweptCells,
    *,
    setting: str,
    kind: str,
    names: tuple[str, str],
    sites: tuple[str, ...],
    config: PatchingConfig,
) -> PatchingMap:
    gaps = found.source - found.into
    undefined = undefined_gap(gaps, found.self_error)
    value, low, high = _recovery(found, bool(undefined))
    change = np.moveaxis(found.patched - found.into[None, :, None, None], 1, 0)
    flipped = config.direction == "noising"
    full = np.nan
    if not undefined and np.isfinite(found.whole).all():
        full = float((found.whole - found.into).mean() / gaps.mean())
    return PatchingMap(
        setting=setting,
        direction=config.direction,
        kind=kind,
        clean_name=names[0],
        corrupted_name=names[1],
        metric=plan.metric,
        sites=sites,
        columns=plan.columns.labels,
        column_roles=plan.columns.roles,
        prompts=tuple(p.row.prompt for p in pairs),
        clean=found.into if flipped else found.source,
        corrupted=found.source if flipped else found.into,
        patched=found.patched.astype(np.float32),
        recovery=value,
        low=low,
        high=high,
        p=sign_flip_p(change),
        computed_cells=found.computed,
        all_cells=found.cells,
        self_error=found.self_error,
        loop_error=found.loop_error,
        full_recovery=full,
        plan=_cost(found, plan.memory),
        dtype=subject.dtype,
        undefined=undefined,
    )


def undefined_gap(gaps: np.ndarray, noise: float) -> str:
    """Why a recovery over these gaps between two runs is undefined; empty when it is not.

    Args:
        gaps: metric of the one run minus that of the other, ``[prompt]``.
        noise: largest error of the metric.
    """
    mean, low, high = mean_interval(gaps)
    if abs(mean) <= max(10 * noise, 1e-6):
        return f"the two runs differ by {mean:.2g} only, recovery would divide by almost nothing"
    if len(gaps) > 1 and low <= 0 <= high:
        return (
            f"the two runs do not differ clearly: {mean:.2g} (95 % interval {low:.2g} to "
            f"{high:.2g}) over {len(gaps)} prompts"
        )
    return ""


def _cost(found: SweptCells, memory: MemoryBudget) -> str:
    """What was chosen and what it cost, in words."""
    way = (
        "each run resumed at the patched layer, with the keys and values of the unchanged prefix"
        if found.cut
        else "each run resumed at the patched layer, all positions (this model's layers take more "
        "than masks and positions)"
    )
    share = found.positions / max(found.loop_positions, 1)
    return (
        f"{way}; {found.computed:,} of {found.cells:,} cells computed (nothing differs in the "
        f"others), {share:.1%} of the positions x layers of whole forward passes; planned for at "
        f"most {(found.memory + found.traces) / GIB:.2f} GiB of {memory.size / GIB:.2f} GiB allowed"
    )


def _recovery(found: SweptCells, undefined: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recovery of the mean metric with bootstrap interval, each ``[site, layer, column]``."""
    patched = found.patched
    shape = (patched.shape[0], *patched.shape[2:])
    if undefined:
        nothing = np.full(shape, np.nan)
        return nothing, nothing.copy(), nothing.copy()
    values = np.moveaxis(patched, 1, 0).reshape(len(found.into), -1)
    there = np.isfinite(values)
    change = np.where(there, values - found.into[:, None], 0.0)
    gap = there * (found.source - found.into)[:, None]
    weights = bootstrap_weights(len(found.into))
    draws, value = weights @ gap, gap.sum(0)
    # A column that few prompts have can have a gap of nearly 0: undefined there, never inf.
    small = 1e-6 * np.abs(found.source - found.into).max()
    value = np.where(np.abs(value) > small, value, np.nan)
    draws = np.where(np.abs(draws) > small / len(weights[0]), draws, np.nan)
    recovery = change.sum(0) / value
    ends = np.full((2, recovery.size), np.nan)
    some = np.isfinite(recovery)
    if some.any():
        ends[:, some] = percentiles(((weights @ change) / draws)[:, some], [2.5, 97.5])
    return recovery.reshape(shape), ends[0].reshape(shape), ends[1].reshape(shape)


def by_setting(
    material: Material, config: PatchingConfig, make: Callable[..., T], **more: Any
) -> dict[str, T]:
    """What `make` (`patch`, `screen`) gives for all pairs that the options name, by setting."""
    with settings_of(material, config) as (attached, pairs, settings):
        return {
            setting: make(
                material.subject, attached, pairs, clean=clean, poisoned="poisoned",
                setting=setting, config=config, **more,
            )
            for setting, clean in settings.items()
        }  # fmt: skip


def patch_case(material: Material, config: PatchingConfig) -> dict[str, PatchingMap]:
    """The maps of all pairs that the options name, by setting."""
    return by_setting(material, config, patch)


@contextmanager
def settings_of(
    material: Material, config: PatchingConfig
) -> Iterator[tuple[Attached, list[Pair], dict[str, str | None]]]:
    """A case's adapters on its model, its pairs, and each setting with its clean run's adapter."""
    wanted = [p.strip() for p in config.pairs.split(",") if p.strip()]
    for name in wanted or [config.pairs]:
        if name not in ("prompt", "adapter", "base"):
            raise LoratomyError(f"no pair {name!r}; there are prompt, adapter and base")
    if "adapter" in wanted and material.clean is None:
        warnings.warn(
            "no clean adapter to take the clean activations from: they are the base's without "
            "adapter (loratomy open --clean-adapter DIR gives one)",
            stacklevel=2,
        )
        wanted = list(dict.fromkeys("base" if name == "adapter" else name for name in wanted))
    pairs = material.plain_pairs if config.twin == "plain" else material.pairs
    clean = {name: "clean" if name == "adapter" else None for name in wanted}
    with material.subject.attached(material.adapters) as attached:
        yield attached, pairs, clean


SOURCE = "Meng et al. 2022, arXiv 2202.05262; Heimersheim & Nanda 2024, arXiv 2404.15255"

ANALYSES.register("patching")(
    Analysis(
        about="Which activations, by layer and place, carry the target.",
        needs=(TRIGGER,),
        cost="for every layer, place and prompt the part of a forward pass behind it",
        source=SOURCE,
        config=PatchingConfig,
        run=patch_case,
    )
)
