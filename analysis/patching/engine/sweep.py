"""A whole patching sweep: every place, layer and column of every prompt, exactly.

Cells whose two activations are bit-identical are not computed. The others resume the run at the
patched layer (`engine`), in batches that fit into memory. Every sweep checks itself: patching a run
with itself, patching everything, and some cells again as whole hooked forward passes.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ....core.errors import DataError
from ....core.model.subject import Attached, Subject
from ....core.progress import report
from ..pairs import check_map
from ..sites import Place, block_ports, kept_ports, port_width
from .batching import MemoryBudget
from .cells import SweptCells, fill
from .resume import Port, Write, replay, resume
from .runs import Runs, Sweep, both_runs


def sweep(
    subject: Subject,
    attached: Attached,
    what: Sweep,
    at: Sequence[Place],
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
        at: what is patched, see `sites.places`.
        memory: what it may take.
        layers: which layers; the others stay NaN.
        label: for the progress bar.

    Raises:
        DataError: no prompts, or lengths that do not fit together.
        LoratomyError: not enough memory, activations that are not finite.
    """
    _check(what)
    count, depth = len(what.targets), len(subject.layers)
    shape = (len(at), count, depth, len(what.columns[0]))
    empty = np.full(count, np.nan)
    found = SweptCells(np.full(shape, np.nan), empty.copy(), empty.copy(), empty.copy())
    memory, numbers = _sized(subject, at, what, memory)
    parts = what.groups(numbers, depth, memory)
    blocks = block_ports(subject)
    every = sum(bool(c) for row in what.columns for c in row)
    total = every * len(at) * len(layers)
    with torch.inference_mode(), attached.using(what.into.adapter):
        while parts:
            members = parts.pop(0)
            try:
                runs = both_runs(subject, attached, what, at, members, besides=blocks)
            except torch.OutOfMemoryError:
                if len(members) == 1:
                    raise
                middle = len(members) // 2
                parts[:0] = [members[:middle], members[middle:]]
                continue
            found.source[members] = runs.reached.cpu().numpy()
            found.into[members] = runs.baseline.cpu().numpy()
            length = runs.into.trace.width + runs.source.trace.width
            kept = memory.of_prompt(length // 2, depth, numbers) * len(members)
            found.traces = max(found.traces, kept)
            for place, out in zip(at, found.patched, strict=True):
                fill(runs, what.columns, place, layers, out, found=found, memory=memory)
                report(label, min(found.cells, total), total)
            whole = _whole(runs, what)
            if whole is not None:
                found.whole[members] = whole.cpu().numpy()
    report(label, total, total)
    return found


def _check(what: Sweep) -> None:
    if not what.targets:
        raise DataError("patching over no prompts; give triggered rows")
    for one, other, aligned in zip(
        what.into.prompts, what.source.prompts, what.aligned, strict=True
    ):
        check_map(aligned, len(one), len(other))


def _sized(
    subject: Subject, at: Sequence[Place], what: Sweep, memory: MemoryBudget
) -> tuple[MemoryBudget, int]:
    """The budget with the widest port known, and the numbers kept per position and layer."""
    widest = max(port_width(subject, place.port) for place in at)
    numbers = widest + sum(
        port_width(subject, port)
        for run in (what.source, what.into)
        for port in {*kept_ports(at, run.adapter), *block_ports(subject)}
    )
    if subject.family.experts:
        numbers += 2 * memory.sizes.d_model
    return replace(memory, sizes=replace(memory.sizes, port=widest)), numbers


def _whole(runs: Runs, what: Sweep) -> torch.Tensor | None:
    """Metric with everything patched, ``[prompt]``; None where that need not be the source run's.

    Between prompts that is the first residual, on one prompt every block's output.
    """
    source, into = runs.source.trace, runs.into.trace
    rows = torch.arange(len(runs.members), device=into.final.device)
    if what.source.adapter == what.into.adapter:
        if not bool(runs.there.all()) or source.width != into.width:
            return None
        write = Write(Port("", "in"), 0, rows, runs.there, source.inputs[0])
        return runs.metric_at(resume(runs.subject, into, [write], needed=runs.needed), rows)
    start = runs.subject.family.layers + "."
    adapters = runs.into.attached.adapters
    used = [adapters[side.adapter] for side in (runs.source, runs.into) if side.adapter]
    if any(not name.startswith(start) for adapter in used for name in adapter.modules):
        return None  # the blocks are not all that differs: another head, other embeddings
    final = replay(runs.subject, into, source, block_ports(runs.subject))
    return runs.metric_at(final[:, runs.needed], rows)
