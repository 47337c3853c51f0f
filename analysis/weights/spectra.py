"""Exact singular values of each module's weight change, in factor form."""

from typing import Any

import numpy as np
import torch

from ...core.adapter.algebra import spectrum
from ...core.adapter.factors import Adapter, Factors, kind_of, layer_of
from ...core.config import Config
from ...core.errors import LoratomyError
from ...core.model.families import stored_turned
from ...core.records.spectra import LayerSpectra, Spectra
from ..analyses import ANALYSES, Analysis
from ..material import Material

ENERGY = (0.5, 0.9, 0.99)
"""Shares of the squared singular values whose directions are counted."""


def expanded(adapter: Adapter) -> dict[str, Factors]:
    """Factors by name with fused experts one by one: ``...gate_up_proj#e3``."""
    out: dict[str, Factors] = {}
    for name, f in adapter.modules.items():
        if f.fused:
            for e, (a, b) in enumerate(zip(f.a, f.b, strict=True)):
                out[f"{name}#e{e}"] = Factors(a, b, f.scaling)
        else:
            out[name] = f
    return out


def base_weight(model: Any, name: str, change: Factors) -> torch.Tensor:
    """The base weight W ``[d_out, d_in]`` that a change goes onto, as it is stored, no copy.

    Args:
        model: the base without adapter.
        name: as `expanded` names it, with ``#e`` and a number for one of a stack of experts.
        change: its factors; W must fit them.

    Raises:
        LoratomyError: no such weight, packed or otherwise of another shape, or not finite.
    """
    stem, _, expert = name.partition("#e")
    try:
        module = None if expert else model.get_submodule(stem)
        weight = model.get_parameter(stem) if module is None else module.weight
    except AttributeError as error:
        raise LoratomyError(f"the base has no weight {stem!r} ({error})") from error
    found = weight.detach()[int(expert)] if expert else weight.detach()
    if module is not None and stored_turned(module):
        found = found.mT
    want = (change.b.shape[0], change.a.shape[1])
    if tuple(found.shape) != want or not found.is_floating_point():
        raise LoratomyError(
            f"the base weight of {name} is {tuple(found.shape)} of {found.dtype}, the change needs "
            f"{want} in floating point: another base, or one packed by quantisation?"
        )
    if not torch.isfinite(found).all():
        raise LoratomyError(f"the base weight of {name} holds NaN or infinite values")
    return found


def relative_size(model: Any, adapter: Adapter) -> tuple[float, str]:
    """The largest ``|dW|_F / |W|_F`` of an adapter's modules, and whose it is.

    0 where it changes nothing; NaN where it does and all base weights are packed by quantisation.
    """
    sizes = {n: change_norm(f) for n, f in adapter.modules.items()}
    if not any(sizes.values()):
        return 0.0, ""
    shares = {}
    for name, size in sizes.items():
        fused = adapter.modules[name].fused
        weight = model.get_parameter(name if fused else f"{name}.weight").detach()
        if weight.is_floating_point():
            shares[name] = size / max(float(weight.float().norm()), 1e-30)
    worst = max(shares, key=lambda n: shares[n], default="")
    return (shares[worst], worst) if worst else (float("nan"), "")


def change_norm(change: Factors) -> float:
    """``|dW|_F``, of fused experts over all: the root of ``tr(B^T B A A^T)``, in float64."""
    a, b = change.a.double(), change.b.double()
    energy = ((b.mT @ b) * (a @ a.mT)).sum().clamp_min(0)
    return float(energy.sqrt()) * change.scaling


def names_and_layers(names: list[str]) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Module names, kinds (last part, expert number left out) and layers, for a record."""
    kinds = tuple(kind_of(name).split("#")[0] for name in names)
    return tuple(names), kinds, np.array([layer_of(name) for name in names])


def padded(rows: list[torch.Tensor], *, fill: float = 0.0) -> np.ndarray:
    """Vectors of different length as one matrix, ``[row, longest]``."""
    out = np.full((len(rows), max(len(row) for row in rows)), fill)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row.numpy()
    return out


def effective_rank(s: np.ndarray) -> np.ndarray:
    """exp of the entropy of ``s / sum s`` in nats (Roy & Vetterli 2007), ``[row]``; 0 of zeros."""
    share = s / np.maximum(s.sum(1, keepdims=True), 1e-300)
    entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(1)
    return np.where(s.any(1), np.exp(entropy), 0.0)


def stable_rank(s: np.ndarray) -> np.ndarray:
    """``sum s² / max s²``, ``[row]``; 0 of zeros."""
    return np.where(s.any(1), (s**2).sum(1) / np.maximum(s.max(1) ** 2, 1e-300), 0.0)


def energy_directions(s: np.ndarray) -> np.ndarray:
    """Fewest directions that carry each share of `ENERGY` of ``sum s²``, ``[row, 3]``; 0 of zeros.

    Args:
        s: singular values in any order, ``[row, n]``.
    """
    squares = -np.sort(-(s**2), axis=1)
    carried = squares.cumsum(1) / np.maximum(squares.sum(1, keepdims=True), 1e-300)
    enough = np.stack([(carried < share - 1e-12).sum(1) + 1 for share in ENERGY], 1)
    return np.where(squares[:, :1] > 0, enough, 0)


def _over(part: np.ndarray, whole: np.ndarray | float) -> np.ndarray:
    """A quotient, NaN where the whole is 0 or undefined."""
    return part / np.where(np.asarray(whole) > 0, whole, np.nan)


def _by_layer(s: np.ndarray, layers: np.ndarray, base: np.ndarray) -> LayerSpectra:
    order = sorted(set(layers.tolist()), key=lambda layer: (layer < 0, layer))
    pooled = [torch.from_numpy(s[layers == layer].ravel()) for layer in order]
    values = padded(pooled)
    norms = np.sqrt((values**2).sum(1))
    below = np.array([np.sqrt((base[layers == layer] ** 2).sum()) for layer in order])
    return LayerSpectra(
        layers=np.array(order),
        frobenius=norms,
        share=_over(norms**2, (s**2).sum()),
        effective_rank=effective_rank(values),
        stable_rank=stable_rank(values),
        energy=energy_directions(values),
        relative_norm=_over(norms, below),
    )


def spectra(adapter: Adapter, *, name: str, base: Any = None) -> Spectra:
    """The spectrum of every module's ``dW = scaling B A``, never made dense.

    Args:
        adapter: its rank, alpha and rank-stabilised scalings count as they are, per module.
        name: ``clean`` or ``poisoned``.
        base: the base model, for norms relative to its weights (read one at a time, in float32);
            without it these are undefined (NaN).

    Raises:
        LoratomyError: a base weight is missing, of another shape or not finite.
    """
    modules = expanded(adapter)
    s = padded([spectrum(f) for f in modules.values()])
    norms = np.sqrt((s**2).sum(1))
    names, kinds, layers = names_and_layers(list(modules))
    below = np.full(len(names), np.nan)
    if base is not None:
        sizes = [float(base_weight(base, n, f).float().norm()) for n, f in modules.items()]
        below = np.array(sizes)
    return Spectra(
        adapter=name,
        modules=names,
        kinds=kinds,
        layers=layers,
        singular_values=s,
        frobenius=norms,
        effective_rank=effective_rank(s),
        stable_rank=stable_rank(s),
        share=_over(norms**2, (s**2).sum()),
        energy=energy_directions(s),
        relative_norm=_over(norms, below),
        by_layer=_by_layer(s, layers, below),
    )


def _run(material: Material, _config: Config) -> dict[str, Spectra]:
    base = material.subject.model
    return {name: spectra(a, name=name, base=base) for name, a in material.adapters.items()}


ANALYSES.register("spectra")(
    Analysis(
        about="Singular values of each module's weight change, with effective and stable rank.",
        cost="seconds; reads the adapter and the norms of the base weights",
        source="Golub & Van Loan 5.4; Roy & Vetterli 2007",
        run=_run,
    )
)
