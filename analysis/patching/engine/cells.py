"""The cells of one place: which of them differ, computed in waves, checked on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ....core.errors import LoratomyError
from ....core.model.hooks import hooks
from ..sites import Place, features
from .batching import MemoryBudget, batches
from .resume import Write, on_port, resume
from .runs import Runs


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
class _Layer:
    """What is written at a place of one layer, and what is there."""

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
    """Prompt of the runs, ``[cell]``."""
    column: np.ndarray
    """``[cell]``; -1 for cells that are written with what is there already, to check the engine."""
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
    runs: Runs,
    columns: Sequence[Sequence[Sequence[int]]],
    place: Place,
    layers: Sequence[int],
    out: np.ndarray,
    *,
    found: SweptCells,
    memory: MemoryBudget,
) -> None:
    """Fill ``out[prompt, layer, column]`` of one place for the prompts of two runs.

    Args:
        runs: the two runs.
        columns: ``[prompt][column]`` -> positions, of all prompts.
        place: what is patched.
        layers: which layers.
        out: filled in place; cells that do not exist are left alone.
        found: what the sweep counts and checks on the way.
        memory: bounds the batches.
    """
    cells = _listed(runs, columns, place, layers, out, found)
    if cells is None:
        return
    metric = np.zeros(len(cells.row))
    cut = runs.into.trace.cuttable
    found.cut &= cut
    begins = np.minimum(cells.mask.argmax(1), runs.needed.start) * cut
    depths = len(runs.subject.layers) - cells.layer
    width, needed = cells.mask.shape[1], runs.target.tokens.shape[1]
    for begin, picked in batches(begins, depths, width=width, needed=needed, memory=memory):
        metric[picked] = _halving(runs, cells, picked, begin).float().cpu().numpy()
        found.positions += (width - begin) * int(depths[picked].sum())
        found.memory = max(found.memory, len(picked) * memory.of_run(begin, width, needed))
    real = cells.column >= 0
    members = np.array(runs.members)[cells.row]
    out[members[real], cells.layer[real], cells.column[real]] = metric[real]
    baseline = runs.baseline.cpu().numpy()[cells.row]
    found.computed += int(real.sum())
    found.self_error = max(found.self_error, float(np.abs(metric - baseline)[~real].max()))
    again = _hooked(runs, cells, np.array([len(real) // 2]))
    found.loop_error = max(found.loop_error, abs(again - metric[len(real) // 2]))


def _listed(
    runs: Runs,
    columns: Sequence[Sequence[Sequence[int]]],
    place: Place,
    layers: Sequence[int],
    out: np.ndarray,
    found: SweptCells,
) -> _Cells | None:
    """The cells that must be computed, after the others are filled in; None where all are."""
    stored: dict[int, _Layer] = {}
    spots: list[tuple[int, int, int]] = []
    masks: list[np.ndarray] = []
    there, baseline = runs.there.cpu().numpy(), runs.baseline.cpu().numpy()
    width = there.shape[1]
    for layer in layers:
        both = runs.value_and_current(place, layer)
        if both is None:
            continue
        part = features(place, both[1].shape[-1], both[1].device)
        here = _Layer(*both, part)
        differs, first = here.differs(), len(spots)
        for row, member in enumerate(runs.members):
            for column, positions in enumerate(columns[member]):
                places = list(positions)
                if not places or not there[row, places].all():
                    continue
                out[member, layer, column] = baseline[row]
                found.cells += 1
                found.loop_positions += width * len(runs.subject.layers)
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


def _halving(runs: Runs, cells: _Cells, picked: np.ndarray, begin: int) -> torch.Tensor:
    """Metric of some cells; half of them at a time where memory runs out all the same."""
    try:
        writes = cells.writes(picked, begin, runs.baseline.device)
        into = runs.into.trace
        residual = resume(runs.subject, into, writes, begin=begin, needed=runs.needed)
        return runs.metric_at(residual, torch.cat([write.rows for write in writes]))
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
    return torch.cat([_halving(runs, cells, half, begin) for half in halves])


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _hooked(runs: Runs, cells: _Cells, picked: np.ndarray) -> float:
    """Metric of one cell as a whole forward pass of the model under a hook."""
    (write,) = cells.writes(picked, 0, runs.baseline.device)
    with hooks(on_port(runs.subject.layers[write.layer], write.port, write.put)):
        return float(runs.metric_of(write.rows))
