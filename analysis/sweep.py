"""A whole patching sweep: every place, layer and column of every prompt, exactly.

Cells whose two activations are bit-identical are not computed. The others resume the run at the
patched layer (`engine`), in batches that `plan` chooses. Every sweep checks itself: patching a run
with itself, patching everything, and some cells again as whole hooked forward passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core.errors import DataError
from ..core.families import logits_of
from ..core.progress import report
from ..core.subject import Attached, Subject
from .cells import Found, Group, fill
from .engine import Port, Write, replay, trace
from .metrics import METRICS, aim_of
from .plan import Budget
from .sites import Place, Side, block_ports, kept_ports


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One of the two runs of a sweep."""

    adapter: str | None
    """The active adapter; None: the base alone."""
    prompts: Sequence[list[int]]
    """Token ids of every prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is patched into what, and what it is measured by."""

    source: Run
    """Where values are taken from."""
    into: Run
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
    memory: Budget,
    layers: Sequence[int],
    label: str,
) -> Found:
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
    found = Found(np.full(shape, np.nan), empty.copy(), empty.copy(), empty.copy())
    parts = _groups(what, len(found_places), depth, memory)
    every = sum(bool(c) for row in what.columns for c in row)
    total = every * len(found_places) * len(layers)
    with torch.inference_mode(), attached.using(what.into.adapter):
        for members in parts:
            group = _run_both(subject, attached, what, found_places, members, memory, found)
            for p, place in enumerate(found_places):
                out = found.patched[p]
                fill(group, what.columns, place, layers, out, label=label, total=total)
            _whole(group, what)
    report(label, total, total)
    return found


def _check(what: Sweep) -> None:
    if not what.targets:
        raise DataError("patching over no prompts; give triggered rows")
    for i, (one, other) in enumerate(zip(what.into.prompts, what.source.prompts, strict=True)):
        if len(what.aligned[i]) != len(one) or max(what.aligned[i]) >= len(other):
            raise DataError(
                f"prompt {i}: {len(one)} and {len(other)} tokens are not aligned by a map of "
                f"{len(what.aligned[i])}; prompts of different length need one, token by token"
            )


def _groups(what: Sweep, kinds: int, depth: int, memory: Budget) -> list[list[int]]:
    """Prompts by their lengths, so that no run needs padding, as many as memory allows."""
    sets: dict[tuple[int, ...], list[int]] = {}
    for i, target in enumerate(what.targets):
        lengths = (len(what.into.prompts[i]), len(what.source.prompts[i]), len(target))
        sets.setdefault(lengths, []).append(i)
    out = []
    for lengths, members in sets.items():
        step = memory.prompts(max(lengths[:2]) + lengths[2], depth, kinds + 1)
        out += [members[i : i + step] for i in range(0, len(members), step)]
    return out


def _run_both(
    subject: Subject,
    attached: Attached,
    what: Sweep,
    found_places: Sequence[Place],
    members: list[int],
    memory: Budget,
    found: Found,
) -> Group:
    targets = [what.targets[i] for i in members]
    forced = len(targets[0]) - 1
    sides, logits = [], []
    for run in (what.source, what.into):
        rows = [run.prompts[i] + what.targets[i][:-1] for i in members]
        ids = torch.tensor(rows, device=subject.device)
        ports = [*kept_ports(found_places, run.adapter), *block_ports(subject)]
        with attached.using(run.adapter):
            kept = trace(subject, ids, list(dict.fromkeys(ports)))
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
        final = replay(group.subject, into, source, block_ports(group.subject))
        metric = group.measure(final[:, group.needed], rows)
    group.found.whole[group.members] = metric.cpu().numpy()
