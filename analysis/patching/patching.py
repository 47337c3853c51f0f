"""Activation patching over layers x places: where does the target come from?

Denoising: values of the clean run are written into the corrupted one; noising: the reverse (Meng
et al. 2022, arXiv 2202.05262; Heimersheim & Nanda 2024, arXiv 2404.15255).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BeforeValidator, Field

from ...core.config import Config
from ...core.errors import DataError, LoratomyError
from ...core.model.subject import Attached, Subject
from ...core.records.patching import PatchingMap
from ...core.stats import bootstrap_weights, mean_interval, sign_flip_p
from ..analyses import ANALYSES, TRIGGER, Analysis
from ..material import Material
from .engine.batching import GIB, MemoryBudget, budget
from .engine.cells import SweptCells
from .engine.runs import PatchRun, Sweep
from .engine.sweep import sweep
from .metrics import METRICS, token_of
from .pairs import Columns, Pair, check_alignment, columns_of
from .sites import places

T = TypeVar("T")

KINDS = {"z": "heads", "lora": "modules", "experts": "experts", "router": "experts"}
"""Sites whose parts are many -> what a map of them is called."""


Written = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, int | float) else v)]
"""A text, also where it was read as a number."""


class PatchingConfig(Config):
    """Options of a patching sweep."""

    pairs: str = "prompt,adapter"
    """Comma-separated: prompt (untriggered into triggered), adapter (clean adapter into poisoned,
    or the base where there is none), base (base into poisoned)."""
    sites: str = "resid_pre,attn_out,mlp_out"
    """Of resid_pre, resid_mid, resid_post, attn_out, mlp_out; or z, or lora, or experts,router."""
    direction: Literal["denoising", "noising"] = "denoising"
    """denoising (clean values into the corrupted run) or noising (the reverse)."""
    metric: str = "log_prob"
    """log_prob, probability, logit_difference or kl."""
    against: Written = ""
    """For logit_difference: the text of one token that competes with the target's first."""
    layers: Written = ""
    """Layers, e.g. 0-3,7; empty: all."""
    columns: Literal["roles", "groups", "all"] = "roles"
    """Positions: roles (single tokens around the trigger), groups (four groups) or all (every
    position; prompts of one length)."""
    twin: Literal["standin", "plain"] = "standin"
    """The untriggered prompt: neutral tokens in the trigger's place, or the prompt without it,
    aligned token by token (the trigger's own tokens then have no counterpart)."""
    memory: float | None = Field(None, gt=0)
    """GiB that patched runs may take; none: half of what is free."""


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


@dataclass(frozen=True, slots=True)
class PlannedSweep:
    """What the options of a sweep come to on a model and its pairs."""

    what: Sweep
    """The two runs, their prompts and the metric."""
    columns: Columns
    """The places of the map."""
    layers: list[int]
    """Layers, ascending."""
    memory: MemoryBudget
    """What patched runs may take."""
    metric: str
    """The metric in words."""


def planned(
    subject: Subject,
    pairs: Sequence[Pair],
    clean: str | None,
    poisoned: str,
    setting: str,
    config: PatchingConfig,
) -> PlannedSweep:
    """The sweep that the options name; arguments and errors as of `patch`."""
    if not pairs:
        raise DataError("patching over no prompts; give triggered rows")
    metric = METRICS[config.metric]
    longest = max(len(p.triggered) + len(p.target) - 1 for p in pairs)
    if subject.limit is not None and longest > subject.limit:
        raise DataError(
            f"a prompt with its target has {longest} tokens, the model's context {subject.limit}; "
            "shorten it or leave it out"
        )
    layers = layer_numbers(config.layers, len(subject.layers))
    columns = columns_of(subject.renderer, pairs, how=config.columns)
    against = None
    if config.against:
        against = token_of(subject.renderer, config.against)
        if config.metric != "logit_difference" or any(p.target[0] == against for p in pairs):
            raise DataError(
                f"against={config.against!r} is for metric=logit_difference and a token other than "
                f"the target's first; the metric is {config.metric}"
            )
    what = sweep_of(pairs, columns, clean, poisoned, setting, config, against)
    words = metric.about.format(n=max(len(p.target) for p in pairs))
    return PlannedSweep(what, columns, layers, budget(subject, config.memory), words)


def layer_numbers(text: str, depth: int) -> list[int]:
    """Layer numbers written as ``0-3,7``; all of them where nothing is written.

    Raises:
        LoratomyError: not a number, or a layer that does not exist.
    """
    out: list[int] = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        first, _, last = (p.strip() for p in part.partition("-"))
        ends = first, last or first
        if not all(end.isdigit() for end in ends) or int(ends[0]) > int(ends[1]):
            raise LoratomyError(f"layers {text!r}: write numbers and ranges, such as 0-3,7")
        out += range(int(ends[0]), int(ends[1]) + 1)
    if wrong := [layer for layer in out if layer >= depth]:
        raise LoratomyError(
            f"no layer {wrong[0]}: this model has {depth}, numbered 0 to {depth - 1}"
        )
    return sorted(set(out)) or list(range(depth))


def run_names(setting: str, clean: str | None, poisoned: str) -> tuple[str, str]:
    """The clean and the corrupted run of a setting, in words."""
    if setting == "prompt":
        return f"{poisoned} adapter, untriggered prompt", f"{poisoned} adapter, triggered prompt"
    return f"{clean} adapter" if clean else "base without adapter", f"{poisoned} adapter"


def sweep_of(
    pairs: Sequence[Pair],
    columns: Columns,
    clean: str | None,
    poisoned: str,
    setting: str,
    config: PatchingConfig,
    against: int | None,
) -> Sweep:
    """Source, destination and alignment of a sweep in the direction of its options.

    Raises:
        DataError: a map that does not fit its two prompts.
    """
    between = setting == "prompt"
    for pair in pairs:
        check_alignment(pair)
    clean_run = PatchRun(
        adapter=poisoned if between else clean,
        prompts=[p.untriggered if between else p.triggered for p in pairs],
    )
    corrupted_run = PatchRun(adapter=poisoned, prompts=[p.triggered for p in pairs])
    maps = [list(p.aligned) if between else list(range(len(p.triggered))) for p in pairs]
    spots = columns.positions
    if config.direction == "denoising":
        source, into = clean_run, corrupted_run
    else:
        source, into = corrupted_run, clean_run
        lengths = [len(prompt) for prompt in clean_run.prompts]
        inverse = [_inverse(m, n) for m, n in zip(maps, lengths, strict=True)]
        spots = [
            [_moved(cell, m, n) for cell in row]
            for row, m, n in zip(spots, maps, lengths, strict=True)
        ]
        maps = inverse
    return Sweep(
        source=source,
        into=into,
        targets=[p.target for p in pairs],
        columns=spots,
        aligned=maps,
        reference="source" if config.direction == "denoising" else "into",
        metric=config.metric,
        against=against,
    )


def _inverse(aligned: Sequence[int], length: int) -> list[int]:
    """``[position of the other run]`` -> position here, -1 for none."""
    out = [-1] * length
    for here, there in enumerate(aligned):
        if there >= 0:
            out[there] = here
    return out


def _moved(cell: Sequence[int], aligned: Sequence[int], length: int) -> list[int]:
    """Positions of the triggered prompt as those of the other run; forced tokens keep their place
    after the prompt's end. Empty when any of them has no counterpart."""
    ends = len(aligned)
    out = [aligned[i] if i < ends else i - ends + length for i in cell]
    return [] if any(i < 0 for i in out) else out


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
        ends[:, some] = np.nanpercentile(((weights @ change) / draws)[:, some], [2.5, 97.5], axis=0)
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
