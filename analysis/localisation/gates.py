"""Gates on singular directions: the model as a differentiable function of what is kept.

Every module is ``U diag(g * s) V^T`` with one gate per direction; 1 keeps it, 0 cuts it. Only the
A factors are replaced for the call (`torch.func.functional_call`), so linear layers and fused
experts go the same way and the model itself is never changed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...core.adapter.algebra import scale_directions, svd_form
from ...core.adapter.factors import Adapter, Factors, filled, layer_of, pack, uniform
from ...core.errors import AdapterError
from ...core.model.batches import Encoded, collate, widened
from ...core.model.subject import Attached, Subject

POSITIONS = 4096
"""Most positions of a batch before it is widened; one row may have more."""
WITH_GRADIENTS = 1024
"""The same where gradients are wanted, for which a pass keeps what it computed: about 2 MB for each
position of a model of 30 layers and 576 dimensions."""
GATED = "gated"
"""Name of the adapter that carries the gates."""


@dataclass(frozen=True, slots=True)
class Directions:
    """An adapter as a sum of rank-1 directions, numbered through: singular ones, or another form.

    Direction i of a module is row i of A and column i of B; any form of the same dW will do.
    """

    adapter: Adapter
    """In that form, all modules of one rank."""
    module: np.ndarray
    """Index into `names`, ``[direction]``."""
    expert: np.ndarray
    """Expert number, -1 for linear layers, ``[direction]``."""
    place: np.ndarray
    """Row of A, from 0; in SVD form the place in the spectrum, ``[direction]``."""
    sigma: np.ndarray
    """Norm of the direction's part of dW; in SVD form its singular value, ``[direction]``."""

    @property
    def names(self) -> list[str]:
        """Module names in order."""
        return list(self.adapter.modules)

    @property
    def layer(self) -> np.ndarray:
        """Layer of each direction, -1 outside the layers."""
        return np.array([layer_of(n) for n in self.names])[self.module]

    def __len__(self) -> int:
        return len(self.module)

    def label(self, i: int, mark: str = "") -> str:
        """A direction by name: ``module:place``, ``module#e2:place`` for expert 2.

        Args:
            i: its number.
            mark: put before the place, to tell another form's directions from singular ones.
        """
        expert = f"#e{self.expert[i]}" if self.expert[i] >= 0 else ""
        return f"{self.names[self.module[i]]}{expert}:{mark}{self.place[i]}"

    def gates(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Gates by module, ``[..., rank]``, from one value per direction (0 where none lives)."""
        out: dict[str, torch.Tensor] = {}
        for m, (name, f) in enumerate(self.adapter.modules.items()):
            here = np.flatnonzero(self.module == m)
            gate = torch.zeros(f.a.shape[:-1], dtype=values.dtype, device=values.device)
            spots = (self.place[here],) if not f.fused else (self.expert[here], self.place[here])
            index = tuple(torch.as_tensor(s, device=values.device) for s in spots)
            out[name] = gate.index_put(index, values[torch.as_tensor(here, device=values.device)])
        return out

    def cut(self, cut: np.ndarray) -> Adapter:
        """The adapter without the directions where `cut` is True, ``[direction]``."""
        keep = torch.as_tensor(~np.asarray(cut, dtype=bool)).float()
        return scale_directions(self.adapter, self.gates(keep))

    def table(self, values: np.ndarray) -> np.ndarray:
        """Per-direction values as ``[module, rank]``, NaN where none lives; experts in a row."""
        width = max(int(f.a.shape[:-1].numel()) for f in self.adapter.modules.values())
        rank = next(iter(self.adapter.modules.values())).rank
        out = np.full((len(self.names), width), np.nan)
        out[self.module, np.maximum(self.expert, 0) * rank + self.place] = values
        return out


def directions_of(adapter: Adapter) -> Directions:
    """All live singular directions of an adapter, module by module, strongest first.

    Raises:
        AdapterError: dW is zero everywhere.
    """
    return numbered(svd_form(adapter))


def numbered(adapter: Adapter) -> Directions:
    """The live directions of an adapter in the form that it has, module by module.

    Raises:
        AdapterError: dW is zero everywhere, or overflows.
    """
    _, scaling, modules = uniform(adapter)
    form = adapter.with_modules(modules)
    rows: list[tuple[int, int, int, float]] = []
    for m, f in enumerate(modules.values()):
        # Not |a_i|^2: modules with another scaling are no longer balanced here.
        sigma = f.a.norm(dim=-1) * f.b.norm(dim=-2) * scaling
        if not torch.isfinite(sigma).all():
            name = list(modules)[m]
            raise AdapterError(
                f"the adapter's change of {name} is so large that its numbers overflow in float32; "
                "are its weights and lora_alpha of a size that makes sense?"
            )
        for spot in sigma.nonzero().tolist():
            expert, place = (spot[0], spot[1]) if f.fused else (-1, spot[0])
            rows.append((m, expert, place, float(sigma[tuple(spot)])))
    if not rows:
        raise AdapterError("the adapter changes nothing: every dW is zero, no direction is left")
    module, expert, place, sigma = (np.array(c) for c in zip(*rows, strict=True))
    return Directions(form, module, expert, place, sigma)


@dataclass(frozen=True)
class GatedModel:
    """A subject whose adapter's directions carry gates."""

    subject: Subject
    directions: Directions
    attached: Attached

    def under(self, gates: torch.Tensor) -> Callable[..., Any]:
        """The model with one gate per direction, ``[direction]``, differentiable in them."""
        replaced = {}
        by_module = self.directions.gates(gates)
        for name, f in self.directions.adapter.modules.items():
            a = f.a.to(gates.device) * by_module[name][..., None]
            replaced[self._a_names[name]] = pack(Factors(a, f.b, f.scaling))[0]
        call, model = torch.func.functional_call, self.subject.model
        return lambda **inputs: call(model, replaced, kwargs=inputs)

    def logits(self, gates: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits ``[batch, pos, d_vocab]`` with one gate per direction, differentiable in them."""
        return self.under(gates)(**batch, use_cache=False).logits

    @property
    def _a_names(self) -> dict[str, str]:
        return {n: names[0] for n, names in self.attached.factor_names(GATED).items()}

    def rebased(self, directions: Directions) -> "GatedModel":
        """The same subject with the same dW in another form, put on in place."""
        self.attached.refill(GATED, directions.adapter)
        rank = next(iter(self.directions.adapter.modules.values())).rank
        form = directions.adapter.with_modules(
            {n: filled(f, rank) for n, f in directions.adapter.modules.items()}
        )
        return GatedModel(self.subject, replace(directions, adapter=form), self.attached)

    def ones(self) -> torch.Tensor:
        """Gates that keep everything, ``[direction]``."""
        return torch.ones(len(self.directions), device=self.subject.device)


@contextmanager
def gated_model(
    subject: Subject, directions: Directions, *, beside: Mapping[str, Adapter] | None = None
) -> Iterator[GatedModel]:
    """The subject with its adapter in gated form, for as long as the block lasts.

    Args:
        subject: the base.
        directions: of the adapter.
        beside: other adapters by name, put on and not active.
    """
    with subject.attached({GATED: directions.adapter, **(beside or {})}) as attached:
        yield GatedModel(subject, directions, attached)


def batches(
    subject: Subject, rows: Sequence[Encoded], size: int, *, positions: int = POSITIONS
) -> list[dict[str, torch.Tensor]]:
    """Consecutive batches of at most so many rows and positions, on the model's device.

    See `collate` and `widened`.
    """
    parts: list[list[Encoded]] = []
    for row in rows:
        joined = [*parts[-1], row] if parts else []
        fits = len(joined) <= size and len(joined) * max(map(len, joined), default=0) <= positions
        if joined and fits:
            parts[-1] = joined
        else:
            parts.append([row])
    made = [widened(collate(p, subject.renderer.pad_id), subject) for p in parts]
    return [{name: value.to(subject.device) for name, value in part.items()} for part in made]
