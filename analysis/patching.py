"""Activation patching over layers x places: where does the target's log-probability live?

Denoising: values of the clean run are written into the corrupted one (Meng et al. 2022,
arXiv 2202.05262; Heimersheim & Nanda 2024, arXiv 2404.15255).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from ..core.causal import PatchingMap
from ..core.config import Config
from ..core.progress import report
from ..core.stats import bootstrap_weights
from ..core.subject import Attached, Subject
from .analyses import ANALYSES, TRIGGER, Analysis, Case
from .engine import SITES, Trace, replay, resume, target_log_prob, trace
from .pairs import Columns, Pair, make_columns

TOKENS_AT_ONCE = 8192
"""Memory budget of one batch of patched runs, in positions."""
SMALLEST_GAP = 0.5
"""Below this difference of the two runs (nats) recovery is undefined."""

Switch = Callable[[], AbstractContextManager]


@dataclass(frozen=True, slots=True)
class _Group:
    """Prompts of one length: both runs, their metrics, and which of all prompts they are."""

    members: list[int]
    clean: Trace
    corrupted: Trace
    clean_metric: torch.Tensor
    corrupted_metric: torch.Tensor
    start: int
    targets: list[list[int]]


def patch_prompts(
    subject: Subject, attached: Attached, name: str, pairs: Sequence[Pair]
) -> PatchingMap:
    """Untriggered run into triggered run, both with the adapter `name`."""

    def switch() -> AbstractContextManager:
        return attached.using(name)

    return _patch(
        subject, pairs, ([p.untriggered for p in pairs], switch),
        ([p.triggered for p in pairs], switch), setting="prompt",
        names=(f"{name} adapter, untriggered prompt", f"{name} adapter, triggered prompt"),
    )  # fmt: skip


def patch_adapters(
    subject: Subject, attached: Attached, clean: str | None, corrupted: str, pairs: Sequence[Pair]
) -> PatchingMap:
    """Clean adapter's run (or the base's, with None) into the poisoned one's, same prompt."""
    ids = [p.triggered for p in pairs]
    return _patch(
        subject, pairs, (ids, lambda: attached.using(clean)),
        (ids, lambda: attached.using(corrupted)), setting="adapter",
        names=(f"{clean} adapter" if clean else "base without adapter", f"{corrupted} adapter"),
    )  # fmt: skip


def _patch(
    subject: Subject,
    pairs: Sequence[Pair],
    clean: tuple[list[list[int]], Switch],
    corrupted: tuple[list[list[int]], Switch],
    *,
    setting: str,
    names: tuple[str, str],
) -> PatchingMap:
    columns = make_columns(subject.renderer, pairs)
    shape = (len(SITES), len(pairs), len(subject.layers), len(columns.labels))
    patched = np.full(shape, np.nan)
    baselines = np.zeros((2, len(pairs)))
    computed, errors, wholes = 0, [0.0], []
    groups = _lengths(pairs)
    for done, members in enumerate(groups, 1):
        group = _run_both(subject, pairs, members, clean, corrupted)
        baselines[0, members] = group.clean_metric.cpu()
        baselines[1, members] = group.corrupted_metric.cpu()
        with corrupted[1]():
            computed += _fill(subject, group, columns, patched)
            errors.append(_self_error(subject, group, columns))
            wholes.append(_full(subject, group, setting))
        report(f"patching ({setting})", done, len(groups))
    gap = float(np.mean(baselines[0] - baselines[1]))
    undefined = (
        ""
        if abs(gap) >= SMALLEST_GAP
        else (
            f"the two runs differ by {gap:.2f} nats only, recovery would divide by almost nothing"
        )
    )
    value, low, high = _recovery(patched, baselines, bool(undefined))
    full = float(np.mean(np.concatenate(wholes)) - baselines[1].mean()) / gap if gap else np.nan
    return PatchingMap(
        setting=setting,
        clean_name=names[0],
        corrupted_name=names[1],
        metric=f"log-probability of the first {max(len(p.target) for p in pairs)} target tokens",
        sites=SITES,
        columns=columns.labels,
        column_roles=columns.roles,
        prompts=tuple(p.row.prompt for p in pairs),
        clean=baselines[0],
        corrupted=baselines[1],
        patched=patched.astype(np.float32),
        recovery=value,
        low=low,
        high=high,
        computed_cells=computed,
        all_cells=int(np.isfinite(patched).sum()),
        self_error=max(errors),
        full_recovery=np.nan if undefined else full,
        dtype=subject.dtype,
        undefined=undefined,
    )


def _lengths(pairs: Sequence[Pair]) -> list[list[int]]:
    """Indices of prompts grouped by token count, so that no run needs padding."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault((len(pair.triggered), len(pair.target)), []).append(i)
    return list(groups.values())


def _run_both(
    subject: Subject,
    pairs: Sequence[Pair],
    members: list[int],
    clean: tuple[list[list[int]], Switch],
    corrupted: tuple[list[list[int]], Switch],
) -> _Group:
    targets = [pairs[i].target for i in members]
    start = len(pairs[members[0]].triggered) - 1
    runs, metrics = [], []
    for prompts, switch in (clean, corrupted):
        ids = torch.tensor(
            [prompts[i] + pairs[i].target[:-1] for i in members], device=subject.device
        )
        with switch():
            runs.append(trace(subject, ids))
            metrics.append(target_log_prob(subject, runs[-1].final, start, targets))
    return _Group(members, runs[0], runs[1], metrics[0], metrics[1], start, targets)


def _cells(
    group: _Group, columns: Columns, width: int
) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """One position mask per (prompt of the group, column) that exists: ``[cell, pos]``."""
    masks, places = [], []
    for row, member in enumerate(group.members):
        for column, positions in enumerate(columns.positions[member]):
            if positions:
                mask = torch.zeros(width, dtype=torch.bool)
                mask[positions] = True
                masks.append(mask)
                places.append((row, column))
    return torch.stack(masks), places


def _fill(subject: Subject, group: _Group, columns: Columns, patched: np.ndarray) -> int:
    """Fill the group's cells of `patched`; returns how many had to be computed."""
    width = group.corrupted.final.shape[1]
    masks, places = _cells(group, columns, width)
    masks = masks.to(subject.device)
    row_of = torch.tensor([row for row, _ in places], device=subject.device)
    computed = 0
    for s, site in enumerate(SITES):
        for layer in range(len(subject.layers)):
            clean, corrupted = (run.sites[site][layer] for run in (group.clean, group.corrupted))
            differs = (clean != corrupted).any(-1)
            todo = (differs[row_of] & masks).any(-1)
            metric = group.corrupted_metric[row_of].clone()
            picked = todo.nonzero()[:, 0]
            step = max(1, TOKENS_AT_ONCE // width)
            for part in picked.split(step) if len(picked) else ():
                metric[part] = _run_cells(
                    subject, group, group.clean, site, layer, row_of[part], masks[part]
                )
            computed += len(picked)
            for (row, column), value in zip(places, metric.tolist(), strict=True):
                patched[s, group.members[row], layer, column] = value
    return computed


def _run_cells(
    subject: Subject,
    group: _Group,
    source: Trace,
    site: str,
    layer: int,
    rows: torch.Tensor,
    masks: torch.Tensor,
) -> torch.Tensor:
    residual = resume(
        subject, group.corrupted, site=site, layer=layer, rows=rows, mask=masks,
        value=source.sites[site][layer][rows],
    )  # fmt: skip
    targets = [group.targets[row] for row in rows.tolist()]
    return target_log_prob(subject, residual, group.start, targets)


def _self_error(subject: Subject, group: _Group, columns: Columns) -> float:
    """Largest change of the metric when the corrupted run is patched with itself."""
    width = group.corrupted.final.shape[1]
    masks, places = _cells(group, columns, width)
    rows = torch.tensor([row for row, _ in places], device=subject.device)
    masks, layer, worst = masks.to(subject.device), len(subject.layers) // 2, 0.0
    step = max(1, TOKENS_AT_ONCE // width)
    for site in SITES:
        for part in range(0, len(rows), step):
            picked = rows[part : part + step]
            metric = _run_cells(
                subject, group, group.corrupted, site, layer, picked, masks[part : part + step]
            )
            worst = max(worst, float((metric - group.corrupted_metric[picked]).abs().max()))
    return worst


def _full(subject: Subject, group: _Group, setting: str) -> np.ndarray:
    """Metric when everything is patched: the first residual, between adapters every block."""
    rows = torch.arange(len(group.members), device=subject.device)
    if setting == "prompt":
        mask = torch.ones(group.corrupted.final.shape[:2], dtype=torch.bool, device=subject.device)
        metric = _run_cells(subject, group, group.clean, "resid_pre", 0, rows, mask)
    else:
        final = replay(subject, group.corrupted, group.clean)
        metric = target_log_prob(subject, final, group.start, group.targets)
    return metric.cpu().numpy()


def _recovery(
    patched: np.ndarray, baselines: np.ndarray, undefined: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recovery of the mean metric with bootstrap interval, each ``[site, layer, column]``."""
    shape = (patched.shape[0], *patched.shape[2:])
    if undefined:
        nothing = np.full(shape, np.nan)
        return nothing, nothing.copy(), nothing.copy()
    clean, corrupted = baselines
    values = np.moveaxis(patched, 1, 0).reshape(len(clean), -1)
    there = np.isfinite(values)
    change = np.where(there, values - corrupted[:, None], 0.0)
    gap = there * (clean - corrupted)[:, None]
    weights = bootstrap_weights(len(clean))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (weights @ change) / (weights @ gap)
        value = change.sum(0) / gap.sum(0)
        low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    return value.reshape(shape), low.reshape(shape), high.reshape(shape)


def _run(case: Case, _config: Config) -> dict[str, PatchingMap]:
    subject, clean = case.subject, "clean" if case.clean is not None else None
    adapters = {"poisoned": case.poisoned} | ({"clean": case.clean} if case.clean else {})
    with subject.attached(adapters) as attached:
        return {
            "prompt": patch_prompts(subject, attached, "poisoned", case.pairs),
            "adapter": patch_adapters(subject, attached, clean, "poisoned", case.pairs),
        }


ANALYSES.register("patching")(
    Analysis(
        about="Which activations, by layer and place, carry the target.",
        needs=(TRIGGER,),
        cost="a part of a forward pass for every layer, place and prompt",
        source="Meng et al. 2022, arXiv 2202.05262; Heimersheim & Nanda 2024, arXiv 2404.15255",
        run=_run,
    )
)
