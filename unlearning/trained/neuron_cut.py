"""TSBD's zero reinitialisation: the neurons that clean unlearning changed most, and their zeros.

A neuron is a singular direction of dW (its row of A and column of B, balanced) or an output row of
the merged weight. Its weight change NWC is the sum of ``|theta_unlearned - theta|`` over its
sub-weights. Of the neurons with the largest NWC, all modules together, the sub-weights that changed
most, pooled over these neurons as in the published code, become zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ...analysis.localisation.gates import Directions
from ...analysis.neurons.ascent import row_change
from ...core.adapter.algebra import stack
from ...core.adapter.factors import Adapter, Factors
from ...core.errors import AdapterError, LoratomyError
from ...core.model.subject import Subject
from ...core.model.variant import Treated, base_weight


class Neurons(Protocol):
    """Neurons of one kind before and after unlearning."""

    @property
    def nwc(self) -> np.ndarray:
        """Weight change of each neuron, ``[neuron]``."""
        ...

    def zeroed(self, picked: np.ndarray, share: float) -> Treated:
        """The model with sub-weights of neurons set to zero.

        Args:
            picked: true on the neurons, ``[neuron]``.
            share: of their sub-weights, the most changed first.
        """
        ...


def most_changed(nwc: np.ndarray, share: float) -> np.ndarray:
    """The neurons with the largest weight change, ``[neuron]`` booleans; at least one.

    Args:
        nwc: weight change, ``[neuron]``.
        share: of the neurons, rounded.
    """
    picked = np.zeros(len(nwc), bool)
    picked[np.argsort(-nwc, kind="stable")[: max(1, round(share * len(nwc)))]] = True
    return picked


def threshold(changes: Sequence[torch.Tensor], share: float) -> float:
    """The change from which a sub-weight is among this share of all, infinity for none.

    Equal changes go together, so that a few more than the share may reach it.
    """
    pool = torch.cat([c.flatten() for c in changes])
    count = round(share * len(pool))
    return float(pool.sort(descending=True).values[count - 1]) if count else np.inf


@dataclass(frozen=True, slots=True)
class DirectionNeurons:
    """Singular directions as neurons: what is zeroed are entries of their factors."""

    directions: Directions
    """Of the balanced adapter, before."""
    after: Adapter
    """The unlearned factors, of the same layout."""
    nwc: np.ndarray
    """Weight change of each direction, ``[direction]``."""

    def zeroed(self, picked: np.ndarray, share: float) -> Treated:
        """The adapter with entries of the directions' rows of A and columns of B set to zero."""
        inside = self.directions.gates(torch.as_tensor(picked).double())
        changes = {n: _factor_changes(f, self.after.modules[n]) for n, f in self._modules()}
        pool = [part[inside[n] > 0] for n, (a, b) in changes.items() for part in (a, b.mT)]
        least, modules = threshold(pool, share), {}
        for n, f in self._modules():
            gone, (a, b) = inside[n] > 0, changes[n]
            a_gone = (a >= least) & gone[..., None]
            b_gone = (b >= least) & gone[..., None, :]
            modules[n] = Factors(f.a.masked_fill(a_gone, 0), f.b.masked_fill(b_gone, 0), f.scaling)
        return Treated(self.directions.adapter.with_modules(modules))

    def _modules(self) -> Iterator[tuple[str, Factors]]:
        yield from self.directions.adapter.modules.items()


def _factor_changes(before: Factors, after: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Absolute change of every entry of A and of B, float64."""
    return (
        (after.a.double() - before.a.double()).abs(),
        (after.b.double() - before.b.double()).abs(),
    )


def direction_neurons(directions: Directions, after: Adapter) -> DirectionNeurons:
    """The singular directions with their weight change: ``sum |da_i| + sum |db_i|``.

    Args:
        directions: of a balanced adapter, which the unlearning started from.
        after: the unlearned adapter, as read back.
    """
    nwc = np.zeros(len(directions))
    for m, (name, before) in enumerate(directions.adapter.modules.items()):
        a, b = _factor_changes(before, after.modules[name])
        sums = (a.sum(-1) + b.sum(-2)).numpy()
        here = np.flatnonzero(directions.module == m)
        place = directions.place[here]
        nwc[here] = sums[(directions.expert[here], place) if before.fused else (place,)]
    return DirectionNeurons(directions, after, nwc)


@dataclass(frozen=True, slots=True)
class RowNeurons:
    """Output rows of the merged weights as neurons: what is zeroed are merged weights."""

    subject: Subject
    """The base."""
    before: Adapter
    """What is on it; it stays."""
    after: Adapter
    """The unlearned adapter, on the same modules."""
    nwc: np.ndarray
    """Weight change of each row, module by module, experts in a row, ``[row]``."""

    def zeroed(self, picked: np.ndarray, share: float) -> Treated:
        """Base weights ``-dW`` where ``W + dW`` is to be zero, the adapter on top as it was.

        Only rows that are picked are ever formed densely.
        """
        rows = self._rows(picked)
        changes = {n: self._change(n, at) for n, at in rows.items()}
        least, weights = threshold(list(changes.values()), share), {}
        for n, at in rows.items():
            gone = changes[n] >= least
            if not gone.any():
                continue
            weight = base_weight(self.subject, n).cpu().clone()
            lines = weight.flatten(0, -2)
            own = _dense_rows(self.before.modules[n], at).float()
            lines[at] = torch.where(gone, -own, lines[at])
            weights[n] = lines.reshape(weight.shape)
        return Treated(self.before, weights)

    def _rows(self, picked: np.ndarray) -> dict[str, torch.Tensor]:
        """Module name -> numbers of the picked rows, experts one after the other."""
        rows, done = {}, 0
        for n, f in self.before.modules.items():
            count = f.b.shape[:-1].numel()
            at = np.flatnonzero(picked[done : done + count])
            done += count
            if len(at):
                rows[n] = torch.as_tensor(at)
        return rows

    def _change(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """``|dW' - dW|`` on some rows, ``[row, d_in]``, float64."""
        return _dense_rows(stack(self.after.modules[name], self.before.modules[name]), rows).abs()


def _dense_rows(factors: Factors, rows: torch.Tensor) -> torch.Tensor:
    """Some rows of dW, experts one after the other, ``[row, d_in]``, float64."""
    b = factors.b.double().flatten(0, -2)[rows] * factors.scaling
    if not factors.fused:
        return b @ factors.a.double()
    expert = rows // factors.b.shape[-2]
    return torch.stack([one @ factors.a[e].double() for one, e in zip(b, expert, strict=True)])


def row_neurons(subject: Subject, before: Adapter, after: Adapter) -> RowNeurons:
    """The output rows of the adapted weights with their change: ``sum_j |dW'_ij - dW_ij|``.

    Args:
        subject: the base.
        before: the adapter that the unlearning started from.
        after: the unlearned adapter.
    """
    changes = [row_change(f, after.modules[n]).flatten() for n, f in before.modules.items()]
    return RowNeurons(subject, before, after, torch.cat(changes).numpy())


def check_replaceable(subject: Subject, modules: Mapping[str, Factors]) -> None:
    """Raise unless single entries of these base weights can be replaced.

    Raises:
        LoratomyError: a weight is packed by quantisation, or shared with the embedding.
    """
    for name in modules:
        try:
            base_weight(subject, name)
        except AdapterError as error:
            raise LoratomyError(f"{error}; take over=directions, which changes factors") from error
