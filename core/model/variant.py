"""What an operation leaves: a new adapter, other base weights, another decoding; put on and off."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..adapter.factors import Adapter, Shapes, read_adapter, write_adapter
from ..errors import AdapterError
from ..files.atomic import need_room
from .families import stored_turned
from .subject import Subject

ADAPTER, WEIGHTS = "adapter", "weights.safetensors"
"""Where the parts of a treatment lie in an operation's folder."""
NAME = "treated"


@dataclass(frozen=True, slots=True)
class Treated:
    """How a model is run after an operation; most operations leave an adapter alone."""

    adapter: Adapter | None = None
    """The new adapter; None where it is merged into `weights`."""
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Base weights that are replaced, by module name, ``[d_out, d_in]`` or ``[expert, d_out,
    d_in]``; the adapter, where there is one, goes on top."""
    temperature: float | None = None
    """Sampling temperature instead of the run's; None: as it is."""

    @property
    def plain(self) -> bool:
        """Whether this is an adapter and nothing else."""
        return self.adapter is not None and not self.weights and self.temperature is None


@contextmanager
def treated(subject: Subject, state: Treated) -> Iterator[None]:
    """The subject as an operation leaves it, for as long as the block lasts.

    Raises:
        AdapterError: a weight that the base does not have, or of another shape.
    """
    with replaced(subject, state.weights):
        if state.adapter is None:
            yield
            return
        with subject.attached({NAME: state.adapter}):
            yield


@contextmanager
def replaced(subject: Subject, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Base weights replaced in place and put back bit by bit, also after an exception.

    Raises:
        AdapterError: a weight that the base does not have, or of another shape.
    """
    parameters = {name: _parameter(subject, name, w) for name, w in weights.items()}
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        with torch.no_grad():
            for name, p in parameters.items():
                new = weights[name]
                p.copy_(new.mT if _turned(subject, name) else new)
        yield
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(kept[name])


def base_weight(subject: Subject, name: str) -> torch.Tensor:
    """The base's own weight of a module, float32, detached, on its device."""
    shape = subject.shapes.get(name)
    if shape is None:
        raise AdapterError(f"the base has no weight of a module {name!r}")
    found = _parameter(subject, name, torch.empty(shape, device="meta")).detach().float()
    return found.mT if _turned(subject, name) else found


def merged_weights(subject: Subject, adapter: Adapter) -> dict[str, torch.Tensor]:
    """``W + dW`` of every adapted module, by name, rounded to the base's own number format.

    Raises:
        AdapterError: a weight that the base does not have, packs by quantisation, or shares.
    """
    return {
        name: (base_weight(subject, name) + f.dense().to(subject.device)).to(subject.model.dtype)
        for name, f in adapter.modules.items()
    }


def _turned(subject: Subject, name: str) -> bool:
    """Whether the base stores a module's weight as ``[d_in, d_out]``."""
    try:
        return stored_turned(subject.model.get_submodule(name))
    except AttributeError:  # a fused weight is no module
        return False


def _parameter(subject: Subject, name: str, value: torch.Tensor) -> torch.nn.Parameter:
    known = dict(subject.model.named_parameters(remove_duplicate=False))
    own = f"{name}.weight" if f"{name}.weight" in known else name
    found = known.get(own)
    if found is None:
        raise AdapterError(f"the base has no weight of a module {name!r}")
    if shared := [n for n, p in known.items() if p is found and n != own]:
        raise AdapterError(
            f"the base's {name} shares its weight with {shared[0]}, which would change with it; "
            "take a method that leaves an adapter"
        )
    want = tuple(value.mT.shape if _turned(subject, name) else value.shape)
    if tuple(found.shape) != want or not found.is_floating_point():
        raise AdapterError(
            f"the base's {name} is {tuple(found.shape)} of {found.dtype}, not "
            f"{want}: weights of another or a quantised base cannot be replaced"
        )
    return found


def write_treated(state: Treated, folder: Path, *, base: str) -> None:
    """Write a treatment's adapter (plain PEFT) and weights below a folder."""
    from safetensors.torch import save_file

    if state.adapter is not None:
        write_adapter(state.adapter, folder / ADAPTER, base=base)
    if state.weights:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: w.detach().cpu().contiguous() for n, w in state.weights.items()}
        need_room(folder, sum(w.nbytes for w in tensors.values()))
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", "base": base})


def read_treated(
    folder: Path, shapes: Shapes, *, temperature: float | None, ignore_modules: Sequence[str] = ()
) -> Treated:
    """A treatment as `write_treated` left it, checked against the base.

    Raises:
        AdapterError: a file is damaged or does not fit the base, or there is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    adapter, weights = None, {}
    if (folder / ADAPTER).exists():
        adapter = read_adapter(folder / ADAPTER, shapes, ignore_modules=ignore_modules)
    path = folder / WEIGHTS
    if path.exists():
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise AdapterError(f"cannot read {path}: {error}; make the operation again") from error
        for name, value in weights.items():
            if tuple(value.shape) != shapes.get(name):
                raise AdapterError(f"{path}: {name} {tuple(value.shape)} does not fit this base")
            if not torch.isfinite(value).all():
                raise AdapterError(f"{path}: {name} holds NaN or infinite values")
    if adapter is None and not weights:
        raise AdapterError(f"{folder} holds neither adapter nor weights; make the operation again")
    return Treated(adapter, weights, temperature)
