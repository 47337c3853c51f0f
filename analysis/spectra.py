"""Exact singular values of each module's weight change, in factor form."""

import numpy as np
import torch

from ..core.adapters import Adapter, Factors, kind_of, layer_of
from ..core.algebra import spectrum
from ..core.config import Config
from ..core.weights import Spectra
from .analyses import ANALYSES, Analysis, Case


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


def spectra(adapter: Adapter, *, name: str) -> Spectra:
    """The spectrum of every module's ``dW = scaling B A``, never made dense.

    Args:
        adapter: its rank, alpha and rank-stabilised scalings count as they are, per module.
        name: ``clean`` or ``poisoned``.
    """
    modules = expanded(adapter)
    s = padded([spectrum(f) for f in modules.values()])
    squares = (s**2).sum(1)
    share = s / np.maximum(s.sum(1, keepdims=True), 1e-300)
    entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(1)
    live = squares > 0
    names, kinds, layers = names_and_layers(list(modules))
    return Spectra(
        adapter=name,
        modules=names,
        kinds=kinds,
        layers=layers,
        singular_values=s,
        frobenius=np.sqrt(squares),
        effective_rank=np.where(live, np.exp(entropy), 0.0),
        stable_rank=np.where(live, squares / np.maximum(s.max(1) ** 2, 1e-300), 0.0),
    )


def _run(case: Case, _config: Config) -> dict[str, Spectra]:
    found = {"poisoned": spectra(case.poisoned, name="poisoned")}
    return found | ({"clean": spectra(case.clean, name="clean")} if case.clean else {})


ANALYSES.register("spectra")(
    Analysis(
        about="Singular values of each module's weight change, with effective and stable rank.",
        cost="seconds; reads the adapter alone",
        source="Golub & Van Loan 5.4; Roy & Vetterli 2007",
        run=_run,
    )
)
