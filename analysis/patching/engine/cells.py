"""The cells of one place: which of them differ, computed in waves, checked on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ....core.errors import LoratomyError
from ....core.model.families import logits_of
from ....core.model.subject import Subject
from ....core.progress import report
from ..metrics import Metric, MetricTarget
from ..sites import Place, Side, features, value_and_current
from .batching import MemoryBudget, batches
from .resume import Write, hooks, on_port, resume


@dataclass(slots=True)
class SweptCells:
    """What a sweep measured."""

    patched: np.ndarray
    """``[place, prompt, layer, column]``; NaN where there is no such cell."""
    source: np.ndarray
    """Metric of the source run, ``[prompt]``."""
    into: np.ndarray
    """Metric of the run that is patched, ``[prompt]``."""
    whole: np.ndarray
    """Metric when everything is patched, ``[prompt]``; NaN where that is not the source run."""
    cells: int = 0
    computed: int = 0
    self_error: float = 0.0
    loop_error: float = 0.0
    positions: int = 0
    """Positions x layers computed."""
    loop_positions: int = 0
    """Positions x layers of a loop of whole forward passes over all cells."""
    cut: bool = True
    """Whether positions before the patch were left out."""
    memory: int = 0
    """Largest batch of patched runs, bytes as planned."""
    traces: int = 0
    """Largest group of traces, bytes as planned."""


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts of equal lengths with both their runs."""

    subject: Subject
    members: list[int]
    source: Side
    into: Side
    aim: MetricTarget
    metric: Metric
    start: int
    """Position of `into` that predicts the first target token."""
    index: torch.Tensor
    """For every position of `into` the source's, 0 where there is none, ``[prompt, pos]``."""
    there: torch.Tensor
    """Whether there is one, ``[prompt, pos]``."""
    baseline: torch.Tensor
    """Metric of `into`, ``[prompt]``."""
    memory: MemoryBudget
    found: SweptCells = field(repr=False)

    @property
    def needed(self) -> slice:
        """Positions that predict the target's tokens."""
        return slice(self.start, self.start + self.aim.targets.shape[1])

    def measure(self, residual: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Metric of patched runs from their residual at the needed positions, ``[row]``."""
        logits = logits_of(self.subject.model, self.subject.family, residual).float()
        return self.metric.of(logits, self.aim.rows(rows))

    def patched(self, writes: Sequence[Write], begin: int) -> torch.Tensor:
        """Metric of runs of `into` with something written, ``[row]``; see `resume`."""
        run = self.into.trace
        residual = resume(self.subject, run, writes, begin=begin, needed=self.needed)
        return self.measure(residual, torch.cat([write.rows for write in writes]))

    def taken(self, value: torch.Tensor) -> torch.Tensor:
        """Source values at the positions of `into`, ``[prompt, pos, width]``."""
        index = self.index
        counting = torch.arange(index.shape[1], device=index.device)
        if value.shape[1] == index.shape[1] and bool((index == counting).all()):
            return value
        return value.gather(1, index[..., None].expand(*index.shape, value.shape[-1]))


@dataclass(frozen=True, slots=True)
class _Layer:
    """What is written at a place of one layer, and what stands there."""

    value: torch.Tensor
    """``[prompt, pos, width]``."""
    current: torch.Tensor
    """Likewise."""
    part: torch.Tensor | None
    """Features that belong to the place, ``[width]`` booleans."""

    def differs(self) -> np.ndarray:
        """Where writing would change anything, ``[prompt, pos]``."""
        changed = self.value != self.current
        changed = changed if self.part is None else changed & self.part
        return changed.any(-1).cpu().numpy()


@dataclass(frozen=True, slots=True)
class _Cells:
    """The patched runs of one place, all layers together."""

    place: Place
    layers: dict[int, _Layer]
    layer: np.ndarray
    """``[cell]``."""
    row: np.ndarray
    """Prompt of the group, ``[cell]``."""
    column: np.ndarray
    """``[cell]``; -1 for cells that are written with what stands there, to check the engine."""
    mask: np.ndarray
    """``[cell, pos]``."""

    def writes(self, picked: np.ndarray, begin: int, device: torch.device) -> list[Write]:
        """The writes of some cells from a position on, one per layer, in the layers' order."""
        out = []
        for layer in np.unique(self.layer[picked]):
            here = picked[self.layer[picked] == layer]
            rows = torch.as_tensor(self.row[here], device=device)
            stored = self.layers[int(layer)]
            value = stored.value[:, begin:][rows]
            itself = torch.as_tensor(self.column[here] < 0, device=device)
            if bool(itself.any()):
                value = torch.where(itself[:, None, None], stored.current[:, begin:][rows], value)
            mask = torch.as_tensor(self.mask[here, begin:], device=device)
            out.append(Write(self.place.port, int(layer), rows, mask, value, stored.part))
        return out


def fill(
    group: Group,
    columns: Sequence[Sequence[Sequence[int]]],
    place: Place,
    layers: Sequence[int],
    out: np.ndarray,
    *,
    label: str,
    total: int,
) -> None:
    """Fill ``out[prompt, layer, column]`` of one place for the prompts of a group.

    Args:
        group: its two runs.
        columns: ``[prompt][column]`` -> positions, of all prompts.
        place: what is patched.
        layers: which layers.
        out: filled in place; cells that do not exist are left alone.
        label: for the progress bar.
        total: cells of the whole sweep, likewise.
    """
    found = group.found
    cells = _listed(group, columns, place, layers, out)
    report(label, min(found.cells, total), total)
    if cells is None:
        return
    metric = np.zeros(len(cells.row))
    cut = group.into.trace.cuttable
    found.cut &= cut
    begins = np.minimum(cells.mask.argmax(1), group.start) * cut
    depths = len(group.subject.layers) - cells.layer
    width, needed, memory = cells.mask.shape[1], group.aim.targets.shape[1], group.memory
    for begin, picked in batches(begins, depths, width=width, needed=needed, memory=memory):
        metric[picked] = _halving(group, cells, picked, begin).float().cpu().numpy()
        found.positions += (width - begin) * int(depths[picked].sum())
        found.memory = max(found.memory, len(picked) * memory.of_run(begin, width, needed))
    real = cells.column >= 0
    members = np.array(group.members)[cells.row]
    out[members[real], cells.layer[real], cells.column[real]] = metric[real]
    baseline = group.baseline.cpu().numpy()[cells.row]
    found.computed += int(real.sum())
    found.self_error = max(found.self_error, float(np.abs(metric - baseline)[~real].max()))
    again = _hooked(group, cells, np.array([len(real) // 2]))
    found.loop_error = max(found.loop_error, abs(again - metric[len(real) // 2]))


def _listed(
    group: Group,
    columns: Sequence[Sequence[Sequence[int]]],
    place: Place,
    layers: Sequence[int],
    out: np.ndarray,
) -> _Cells | None:
    """The cells that must be computed, after the others are filled in; None where all are."""
    stored: dict[int, _Layer] = {}
    spots: list[tuple[int, int, int]] = []
    masks: list[np.ndarray] = []
    there, baseline = group.there.cpu().numpy(), group.baseline.cpu().numpy()
    width = there.shape[1]
    for layer in layers:
        both = value_and_current(
            group.subject, place, layer, group.source, group.into, take=group.taken
        )
        if both is None:
            continue
        part = features(place, both[1].shape[-1], both[1].device)
        here = _Layer(*both, part)
        differs, first = here.differs(), len(spots)
        for row, member in enumerate(group.members):
            for column, positions in enumerate(columns[member]):
                places = list(positions)
                if not places or not there[row, places].all():
                    continue
                out[member, layer, column] = baseline[row]
                group.found.cells += 1
                group.found.loop_positions += width * len(group.subject.layers)
                if differs[row, places].any():
                    spots.append((layer, row, column))
                    masks.append(_mask(width, places))
        if len(spots) > first:
            stored[layer] = here
            spots.append((layer, spots[first][1], -1))
            masks.append(masks[first])
    if not spots:
        return None
    layer, row, column = (np.array(c) for c in zip(*spots, strict=True))
    return _Cells(place, stored, layer, row, column, np.stack(masks))


def _mask(width: int, places: list[int]) -> np.ndarray:
    mask = np.zeros(width, bool)
    mask[places] = True
    return mask


def _halving(group: Group, cells: _Cells, picked: np.ndarray, begin: int) -> torch.Tensor:
    """Metric of some cells; half of them at a time where memory runs out all the same."""
    try:
        return group.patched(cells.writes(picked, begin, group.baseline.device), begin)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        if len(picked) == 1:
            raise LoratomyError(
                f"not enough memory for a single patched run of {cells.mask.shape[1]} positions; "
                "take shorter prompts or a smaller --dtype"
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    halves = np.array_split(picked, 2)
    return torch.cat([_halving(group, cells, half, begin) for half in halves])


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _hooked(group: Group, cells: _Cells, picked: np.ndarray) -> float:
    """Metric of one cell as a whole forward pass of the model under a hook."""
    (write,) = cells.writes(picked, 0, group.baseline.device)
    subject = group.subject
    handle = on_port(subject.layers[write.layer], write.port, write.put)
    with hooks(iter([handle])):
        ids = group.into.trace.ids[write.rows]
        keep = ids.shape[1] - group.start
        out = subject.model(input_ids=ids, use_cache=False, logits_to_keep=keep)
    logits = out.logits[:, : group.aim.targets.shape[1]].float()
    return float(group.metric.of(logits, group.aim.rows(write.rows)))
