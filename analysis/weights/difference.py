"""Clean against poisoned: what the poison added, module by module, in factor form."""

import numpy as np
import torch

from ...core.adapter.algebra import norm, principal_angles, spectrum, stack, svd
from ...core.adapter.factors import Adapter, Factors
from ...core.config import Config
from ...core.errors import AdapterError
from ...core.records.spectra import Difference
from ..analyses import ANALYSES, CLEAN_ADAPTER, Analysis
from ..material import Material
from .spectra import expanded, names_and_layers, padded


def _bases(factors: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal bases of dW's row and column space, ``[d_in, rank]`` and ``[d_out, rank]``.

    The rank is that of dW, which dependent or zero factors leave below the adapter's.
    """
    found = svd(factors)
    live = found.s > 0
    return found.vh[live].mT, found.u[:, live]


def same_modules(clean: Adapter, poisoned: Adapter) -> dict[str, tuple[Factors, Factors]]:
    """The clean and the poisoned factors of every module, experts one by one.

    Raises:
        AdapterError: the adapters do not change the same modules, or not in the same shapes.
    """
    left, right = expanded(clean), expanded(poisoned)
    if odd := sorted(left.keys() ^ right.keys()):
        raise AdapterError(
            f"the clean and the poisoned adapter differ in their modules: {', '.join(odd[:3])}"
        )
    for name, theirs in right.items():
        sizes = [(f.b.shape[0], f.a.shape[1]) for f in (left[name], theirs)]
        if sizes[0] != sizes[1]:
            raise AdapterError(
                f"the clean adapter's {name} is {sizes[0]}, the poisoned one's {sizes[1]}; "
                "both must be adapters of one base"
            )
    return {name: (left[name], theirs) for name, theirs in right.items()}


def difference(clean: Adapter, poisoned: Adapter) -> Difference:
    """Norms, spectrum of ``poisoned - clean`` (their factors stacked), and principal angles.

    Raises:
        AdapterError: the adapters do not change the same modules, or not in the same shapes.
    """
    both = same_modules(clean, poisoned)
    inputs, outputs, stacked = [], [], []
    for c, p in both.values():
        (in_c, out_c), (in_p, out_p) = _bases(c), _bases(p)
        inputs.append(principal_angles(in_c, in_p))
        outputs.append(principal_angles(out_c, out_p))
        stacked.append(spectrum(stack(p, c)))
    s = padded(stacked)
    names, kinds, layers = names_and_layers(list(both))
    return Difference(
        modules=names,
        kinds=kinds,
        layers=layers,
        clean_norm=np.array([float(norm(c)) for c, _ in both.values()]),
        poisoned_norm=np.array([float(norm(p)) for _, p in both.values()]),
        difference_norm=np.sqrt((s**2).sum(1)),
        singular_values=s,
        input_angles=padded(inputs, fill=np.nan),
        output_angles=padded(outputs, fill=np.nan),
    )


def _run(material: Material, _config: Config) -> dict[str, Difference]:
    assert material.clean is not None
    return {"difference": difference(material.clean, material.poisoned)}


ANALYSES.register("difference")(
    Analysis(
        about="What separates the poisoned from the clean adapter: norms, spectrum, angles.",
        needs=(CLEAN_ADAPTER,),
        cost="seconds; reads the two adapters alone",
        source="Bjoerck & Golub 1973",
        run=_run,
    )
)
