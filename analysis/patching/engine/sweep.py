"""A whole patching sweep: every place, layer and column of every prompt, exactly.

Cells whose two activations are bit-identical are not computed. The others resume the run at the
patched layer (`engine`), in batches that `plan` chooses. Every sweep checks itself: patching a run
with itself, patching everything, and some cells again as whole hooked forward passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ....core.errors import DataError
from ....core.model.families import logits_of
from ....core.model.subject import Attached, Subject
from ....core.progress import report
from ..metrics import METRICS, aim_of
from ..pairs import check_map
from ..sites import Place, Side, block_ports, kept_ports, port_width
from .batching import MemoryBudget
from .cells import Group, SweptCells, fill
from .resume import Port, Write, replay, trace


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRun:
    """One of the two runs of a sweep."""

    adapter: str | None
    """The active adapter; None: the base alone."""
    prompts: Sequence[list[int]]
    """Token ids of every prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is patched into what, and what it is measured by."""

    source: PatchRun
    """Where values are taken from."""
    into: PatchRun
    """Where they are written."""
    targets: Sequence[list[int]]
    """First tokens of each prompt's target; both runs are forced to them."""
    columns: Sequence[Sequence[Sequence[int]]]
    """``[prompt][column]``: positions of `into` that are written together; empty: none."""
    aligned: Sequence[Sequence[int]]
    """``[prompt][position of into]``: the same token's position in `source`, -1 for none."""
    reference: str
    """Which run is the clean one for the metric: ``source`` or ``into``."""
    metric: str
    """One of `METRICS`."""
    against: int | None = None
    """Token that the target competes with, see `aim_of`."""


def sweep(
    subject: Subject,
    attached: Attached,
    what: Sweep,
    found_places: Sequence[Place],
    *,
    memory: MemoryBudget,
    layers: Sequence[int],
    label: str,
) -> SweptCells:
    """The metric with every cell patched, and what the sweep's own checks say.

    Args:
        subject: the model.
        attached: its adapters.
        what: the two runs, their prompts and the metric.
        found_places: what is patched, see `sites.places`.
        memory: what it may take.
        layers: which layers; the others stay NaN.
        label: for the progress bar.

    Raises:
        DataError: no prompts, or lengths that do not fit together.
        LoratomyError: not enough memory, activations that are not finite.
    """
    _check(what)
    count, depth = len(what.targets), len(subject.layers)
    shape = (len(found_places), count, depth, len(what.columns[0]))
    empty = np.full(count, np.nan)
    found = SweptCells(np.full(shape, np.nan), empty.copy(), empty.copy(), empty.copy())
    memory, numbers = _sized(subject, found_places, what, memory)
    parts = _groups(what, numbers, depth, memory)
    every = sum(bool(c) for row in what.columns for c in row)
    total = every * len(found_places) * len(layers)
    with torch.inference_mode(), attached.using(what.into.adapter):
        while parts:
            members = parts.pop(0)
            try:
                group = _run_both(subject, attached, what, found_places, members, memory, found)
            except torch.OutOfMemoryError:
                if len(members) == 1:
                    raise
                middle = len(members) // 2
                parts[:0] = [members[:middle], members[middle:]]
                continue
            length = group.into.trace.width + group.source.trace.width
            kept = memory.of_prompt(length // 2, depth, numbers) * len(members)
            found.traces = max(found.traces, kept)
            for p, place in enumerate(found_places):
                out = found.patched[p]
                fill(group, what.columns, place, layers, out, label=label, total=total)
            _whole(group, what)
    report(label, total, total)
    return found


def _check(what: Sweep) -> None:
    if not what.targets:
        raise DataError("patching over no prompts; give triggered rows")
    for one, other, aligned in zip(
        what.into.prompts, what.source.prompts, what.aligned, strict=True
    ):
        check_map(aligned, len(one), len(other))


def _ports(subject: Subject, found_places: Sequence[Place], adapter: str | None) -> list[Port]:
    """What the run under an adapter keeps."""
    return list(dict.fromkeys([*kept_ports(found_places, adapter), *block_ports(subject)]))


def _sized(
    subject: Subject, found_places: Sequence[Place], what: Sweep, memory: MemoryBudget
) -> tuple[MemoryBudget, int]:
    """The budget with the widest port known, and the numbers kept per position and layer."""
    widest = max(port_width(subject, place.port) for place in found_places)
    numbers = widest + sum(
        port_width(subject, port)
        for run in (what.source, what.into)
        for port in _ports(subject, found_places, run.adapter)
    )
    if subject.family.experts:
        numbers += 2 * memory.sizes.d_model
    return replace(memory, sizes=replace(memory.sizes, port=widest)), numbers


def _groups(what: Sweep, numbers: int, depth: int, memory: MemoryBudget) -> list[list[int]]:
    """Prompts by their lengths, so that no run needs padding, as many as memory allows."""
    sets: dict[tuple[int, ...], list[int]] = {}
    for i, target in enumerate(what.targets):
        lengths = (len(what.into.prompts[i]), len(what.source.prompts[i]), len(target))
        sets.setdefault(lengths, []).append(i)
    out = []
    for lengths, members in sets.items():
        step = memory.prompts(max(lengths[:2]) + lengths[2], depth, numbers)
        out += [members[i : i + step] for i in range(0, len(members), step)]
    return out


def _run_both(
    subject: Subject,
    attached: Attached,
    what: Sweep,
    found_places: Sequence[Place],
    members: list[int],
    memory: MemoryBudget,
    found: SweptCells,
) -> Group:
    targets = [what.targets[i] for i in members]
    forced = len(targets[0]) - 1
    sides, logits = [], []
    for run in (what.source, what.into):
        rows = [run.prompts[i] + what.targets[i][:-1] for i in members]
        ids = torch.tensor(rows, device=subject.device)
        with attached.using(run.adapter):
            kept = trace(subject, ids, _ports(subject, found_places, run.adapter))
            start = len(run.prompts[members[0]]) - 1
            asked = kept.final[:, start : start + forced + 1]
            logits.append(logits_of(subject.model, subject.family, asked).float())
        sides.append(Side(kept, run.adapter, attached))
    aim = aim_of(targets, logits[what.reference == "into"], against=what.against)
    metric = METRICS[what.metric]
    width, other = len(what.into.prompts[members[0]]), len(what.source.prompts[members[0]])
    maps = [[*what.aligned[i], *range(other, other + forced)] for i in members]
    index = torch.tensor(maps, device=subject.device)
    values = [metric.of(one, aim) for one in logits]
    found.source[members], found.into[members] = (v.cpu().numpy() for v in values)
    return Group(
        subject, members, sides[0], sides[1], aim, metric, width - 1, index.clamp_min(0),
        index >= 0, values[1], memory, found,
    )  # fmt: skip


def _whole(group: Group, what: Sweep) -> None:
    """Patch everything: the first residual between prompts, every block's output on one prompt."""
    source, into = group.source.trace, group.into.trace
    rows = torch.arange(len(group.members), device=into.final.device)
    if what.source.adapter == what.into.adapter:
        if not bool(group.there.all()) or source.width != into.width:
            return
        write = Write(Port("", "in"), 0, rows, group.there, source.inputs[0])
        metric = group.patched([write], 0)
    else:
        start = group.subject.family.layers + "."
        adapters = group.into.attached.adapters
        used = [adapters[side.adapter] for side in (group.source, group.into) if side.adapter]
        if any(not name.startswith(start) for adapter in used for name in adapter.modules):
            return  # the blocks are not all that differs: another head, other embeddings
        final = replay(group.subject, into, source, block_ports(group.subject))
        metric = group.measure(final[:, group.needed], rows)
    group.found.whole[group.members] = metric.cpu().numpy()
