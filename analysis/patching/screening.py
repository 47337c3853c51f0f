"""Screening: the effect of every cell from gradients, and exact patching of the strongest.

Attribution patching (Syed et al. 2023, arXiv 2310.10348) takes the slope at the run itself;
integrated gradients by layer (Hanna et al. 2024, arXiv 2403.17806) average it on the way to the
other run. Both are approximations: the exact cells show how close each comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from ...core.errors import LoratomyError
from ...core.model.subject import Attached, Subject
from ...core.progress import report
from ...core.records.patching import Screening
from ..analyses import ANALYSES, TRIGGER, Analysis
from ..material import Material
from .engine.batching import MemoryBudget
from .engine.gradients import along, blocks_of, slopes
from .engine.runs import Runs, both_runs, precise
from .pairs import Pair
from .patching import by_setting
from .planning import PatchingConfig, PlannedSweep, planned, run_names
from .screening_exact import Checked, agreements, means, patched_cells, picked_cells, sentence_of
from .sites import Place, has_mid, kept_ports, places


class ScreeningConfig(PatchingConfig):
    """Options of a screening."""

    sites: str = "resid_pre,resid_mid,attn_out,mlp_out,z,lora"
    """Any of resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, lora, experts, router."""
    metric: str = "logit_difference"
    """log_prob, probability, logit_difference or kl. A log-probability near 0 is flat: its
    gradient says little of what a patch would do; a difference of logits never is."""
    steps: int = Field(5, ge=1)
    """Points of the way from one run to the other at which integrated gradients are taken."""
    checked: int = Field(32, ge=3)
    """Cells patched exactly, those of largest integrated effect; as many random ones are added."""


@dataclass(frozen=True, slots=True)
class Maps:
    """Effects from gradients, filled group by group."""

    attribution: np.ndarray
    """``[site, prompt, layer, column]``; NaN where there is no such cell."""
    integrated: np.ndarray
    """Likewise."""
    differs: np.ndarray
    """Whether anything differs there, likewise."""
    whole: np.ndarray
    """Effect of a whole block, ``[block, prompt, layer]``."""
    whole_integrated: np.ndarray
    """The same from gradients."""
    source: np.ndarray
    """Metric of the source run, ``[prompt]``."""
    into: np.ndarray
    """Metric of the run that is patched, ``[prompt]``."""
    passes: np.ndarray
    """Forward and backward passes of a prompt: first order, integrated, ``[2]``."""


def screen(
    subject: Subject,
    attached: Attached,
    pairs: Sequence[Pair],
    *,
    clean: str | None,
    poisoned: str,
    setting: str,
    seed: int,
    config: ScreeningConfig,
) -> Screening:
    """Effects of all cells from gradients, and exactly for the strongest and for random ones.

    Args:
        subject: the model.
        attached: its adapters.
        pairs: triggered prompts with their untriggered twins.
        clean: adapter of the clean run; None: the base. Between prompts the same as `poisoned`.
        poisoned: adapter of the corrupted run.
        setting: ``prompt``, ``adapter`` or ``base``.
        seed: of the random cells.
        config: sites, direction, metric, places, steps, checked cells, memory.

    Raises:
        DataError: no pairs, prompts that do not fit together, a token that does not exist.
        LoratomyError: a site, layer or metric that does not exist; not enough memory.
    """
    plan = planned(subject, pairs, clean, poisoned, setting, config)
    at, left_out = _places(subject, attached, config.sites)
    label = f"screening ({setting})"
    maps = gradient_maps(subject, attached, plan, at, config.steps, label)
    strongest = np.nan_to_num(np.abs(means(maps.integrated)[..., 0]))
    moved = np.asarray(maps.differs.any(1))
    top, random = picked_cells(strongest, moved, config.checked, seed)
    exact = patched_cells(
        subject, attached, plan.what, at, top | random, memory=plan.memory, label=f"{label}, exact"
    )
    return _record(
        subject, pairs, plan, at, maps, exact, (top, random), config, setting=setting,
        names=run_names(setting, clean, poisoned), left_out=left_out,
    )  # fmt: skip


def _places(subject: Subject, attached: Attached, text: str) -> tuple[list[Place], str]:
    """The places of the sites in a text, and what of it the adapter does not have."""
    sites = [s.strip() for s in text.split(",") if s.strip()]
    if not sites:
        raise LoratomyError("screening over no sites; name some, such as resid_pre,z,lora")
    start = subject.family.layers + "."
    modules = [(n, f) for a in attached.adapters.values() for n, f in a.modules.items()]
    linear = any(name.startswith(start) and not f.fused for name, f in modules)
    left_out = []
    if "lora" in sites and len(sites) > 1 and not linear:
        sites.remove("lora")
        left_out.append("lora: the adapter changes no linear module inside the layers")
    if "resid_mid" in sites and len(sites) > 1 and not has_mid(subject):
        sites.remove("resid_mid")
        left_out.append("resid_mid: attention and MLP both read resid_pre in this family")
    return places(subject, attached, sites), "; ".join(left_out)


def gradient_maps(
    subject: Subject,
    attached: Attached,
    plan: PlannedSweep,
    at: Sequence[Place],
    steps: int,
    label: str,
) -> Maps:
    """First-order and integrated effects of every cell of a sweep.

    Args:
        subject: the model.
        attached: its adapters.
        plan: the two runs, their prompts, the metric, layers and memory.
        at: what is patched, see `sites.places`.
        steps: points of integrated gradients.
        label: for the progress bar.
    """
    what, layers, memory = plan.what, plan.layers, plan.memory
    count, depth, blocks = len(what.targets), len(subject.layers), blocks_of(at)
    shape = (len(at), count, depth, len(what.columns[0]))
    maps = Maps(
        np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, bool),
        np.full((len(blocks), count, depth), np.nan), np.full((len(blocks), count, depth), np.nan),
        np.full(count, np.nan), np.full(count, np.nan), np.zeros(2, int),
    )  # fmt: skip
    # A LoRA module keeps its output and its contribution, as wide as the MLP at most.
    wide = -(-memory.sizes.d_mlp // memory.sizes.d_model)
    widths = sum(2 * wide if at[i[0]].kind == "lora" else 1 for i in blocks.values()) + 1
    parts = what.groups(widths, depth, memory)
    total, done = len(parts) * len(blocks) * len(layers), 0
    for members in parts:
        runs = both_runs(subject, attached, what, at, members)
        maps.source[members] = runs.reached.cpu().numpy()
        maps.into[members] = runs.baseline.cpu().numpy()
        with attached.using(what.into.adapter):
            # PEFT lets the active adapter learn: its factors would begin the graph too early.
            for parameter in subject.model.parameters():
                parameter.requires_grad_(False)
            ports = kept_ports(at, None)
            first = slopes(runs, ports, layers, memory)
            maps.passes[0] += len(members)
            for number, chosen in enumerate(blocks.values()):
                for layer in layers:
                    block = _Block(runs, [at[i] for i in chosen], layer)
                    block.fill(maps, chosen, number, what.columns, first, steps, memory)
                    done += 1
                    report(label, done, total)
    return maps


class _Block:
    """What is integrated together: the places that share a port, in one layer."""

    def __init__(self, runs: Runs, found: list[Place], layer: int) -> None:
        self.runs, self.layer, self.port = runs, layer, found[0].port
        self.changes: list[torch.Tensor] = []
        self.parts = [place.part or slice(None) for place in found]
        self.current: torch.Tensor | None = None
        shared = found[0].part is not None  # heads: parts of one and the same change
        for place in found[:1] if shared else found:
            with torch.no_grad():
                both = runs.value_and_current(place, layer)
            if both is None:
                return
            value, self.current = both
            change = precise(value) - precise(self.current)
            self.changes.append(torch.where(runs.there[..., None], change, 0))
        self.all = sum(self.changes[1:], self.changes[0])
        self.changes *= len(found) if shared else 1

    def fill(
        self,
        maps: Maps,
        chosen: Sequence[int],
        number: int,
        columns: Sequence[Sequence[Sequence[int]]],
        first: dict,
        steps: int,
        memory: MemoryBudget,
    ) -> None:
        """Fill the maps at this block's sites and layer for the prompts of the runs."""
        if self.current is None:
            return
        runs, layer, members = self.runs, self.layer, self.runs.members
        slope, mean = first[self.port, layer], torch.zeros_like(self.all)
        far = runs.baseline
        if bool(self.all.any()):
            ends = (self.current, self.all)
            mean, far = along(runs, self.port, layer, ends, steps=steps, memory=memory)
            maps.passes[1] += len(members) * (steps + 1)
        maps.whole[number, members, layer] = (far - runs.baseline).double().cpu().numpy()
        joint = (self.all * mean).sum((1, 2), dtype=torch.float64)
        maps.whole_integrated[number, members, layer] = joint.cpu().numpy()
        spots, exists = _spots(runs, [columns[i] for i in members])
        for site, part, change in zip(chosen, self.parts, self.changes, strict=True):
            moved = change[..., part]
            for out, gradient in ((maps.attribution, slope), (maps.integrated, mean)):
                per_position = (moved * precise(gradient[..., part])).sum(-1, dtype=torch.float64)
                cells = np.einsum("rp,rcp->rc", per_position.cpu().numpy(), spots)
                out[site, members, layer] = np.where(exists, cells, np.nan)
            any_moved = moved.any(-1).cpu().numpy()
            maps.differs[site, members, layer] = (
                np.einsum("rp,rcp->rc", any_moved, spots) > 0
            ) & exists


def _spots(runs: Runs, columns: Sequence[Sequence[Sequence[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of every cell, ``[row, column, pos]``, and which cells there are."""
    there = runs.there.cpu().numpy()
    spots = np.zeros((len(columns), len(columns[0]), there.shape[1]))
    for row, cells in enumerate(columns):
        for column, positions in enumerate(cells):
            spots[row, column, list(positions)] = 1
    exists = spots.any(-1) & (spots * ~there[:, None] == 0).all(-1)
    return spots, exists


def _record(
    subject: Subject,
    pairs: Sequence[Pair],
    plan: PlannedSweep,
    at: Sequence[Place],
    maps: Maps,
    exact: Checked,
    chosen: tuple[np.ndarray, np.ndarray],
    config: ScreeningConfig,
    *,
    setting: str,
    names: tuple[str, str],
    left_out: str,
) -> Screening:
    maps_of = (maps.attribution, maps.integrated, exact.effect)
    attribution, integrated, checked = (means(values) for values in maps_of)
    agreement = agreements(attribution[..., 0], integrated[..., 0], checked, *chosen)
    source, into = names if config.direction == "denoising" else names[::-1]
    undefined = ""
    if any(np.isnan(a.spearman) for a in agreement if a.cells == "checked"):
        undefined = f"{agreement[0].n} checked cells, or effects that are all equal, have no ranks"
    labels, passes = tuple(p.label for p in at), (*maps.passes.tolist(), exact.computed)
    all_cells = int(maps.differs.sum())
    return Screening(
        setting=setting,
        direction=config.direction,
        source_name=source,
        into_name=into,
        metric=plan.metric,
        sites=labels,
        kinds=tuple(p.kind for p in at),
        columns=plan.columns.labels,
        column_roles=plan.columns.roles,
        prompts=tuple(p.row.prompt for p in pairs),
        source=maps.source,
        into=maps.into,
        attribution=attribution,
        integrated=integrated,
        exact=checked,
        attribution_by_prompt=maps.attribution.astype(np.float32),
        integrated_by_prompt=maps.integrated.astype(np.float32),
        exact_by_prompt=exact.effect.astype(np.float32),
        top=chosen[0],
        random=chosen[1],
        blocks=tuple(blocks_of(at)),
        whole=maps.whole.mean(1),
        whole_integrated=maps.whole_integrated.mean(1),
        steps=config.steps,
        agreements=agreement,
        attribution_passes=passes[0],
        integrated_passes=passes[1],
        exact_passes=exact.computed,
        all_cells=all_cells,
        self_error=exact.self_error,
        loop_error=exact.loop_error,
        left_out=left_out,
        dtype=subject.dtype,
        undefined=undefined,
        sentence=sentence_of(
            agreement, checked, labels, plan.columns.labels, len(pairs), passes, all_cells
        ),
    )


def _run(material: Material, config: ScreeningConfig) -> dict[str, Screening]:
    return by_setting(material, config, screen, seed=material.seed)


ANALYSES.register("screening")(
    Analysis(
        about="Effects of all cells from gradients; the strongest and random ones patched exactly.",
        needs=(TRIGGER,),
        cost="a forward and backward pass per prompt; steps + 1 for every site and layer; "
        "the exact cells as in patching",
        source="Syed et al. 2023, arXiv 2310.10348; Hanna et al. 2024, arXiv 2403.17806",
        config=ScreeningConfig,
        run=_run,
    )
)
