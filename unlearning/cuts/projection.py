"""Projecting the clean-vs-poisoned difference out of the poisoned adapter."""

from pydantic import Field

from ...analysis.material import Material
from ...core.adapter.algebra import stack, svd
from ...core.adapter.factors import Factors
from ...core.config import Config
from ...core.errors import AdapterError
from ..method import CLEAN_ADAPTER, CUT, METHODS, Method, Outcome


class ProjectDifferenceConfig(Config):
    """Options of `project-difference`."""

    rank: int = Field(1, ge=1)
    """Strongest directions of the difference removed from each module's output."""


def project_difference(material: Material, config: ProjectDifferenceConfig) -> Outcome:
    """Remove from every module's output what the poisoned adapter has and the clean one lacks.

    With U the strongest output directions of ``dW_poisoned - dW_clean``, from the stacked
    factors: ``dW' = (I - U U^T) dW_poisoned``.
    """
    assert material.clean is not None
    if odd := sorted(material.start.modules.keys() ^ material.clean.modules.keys()):
        raise AdapterError(
            f"the clean and the poisoned adapter differ in their modules: {', '.join(odd[:3])}"
        )
    modules, removed = {}, 0
    for name, poisoned in material.start.modules.items():
        found = svd(stack(poisoned, material.clean.modules[name]))
        live = found.s[..., : config.rank] > 0
        u = found.u[..., : config.rank] * live[..., None, :]
        b = poisoned.b.double()
        modules[name] = Factors(poisoned.a, (b - u @ (u.mT @ b)).float(), poisoned.scaling)
        removed += int(live.sum())
    return Outcome(
        material.start.with_modules(modules),
        f"projected the {config.rank} strongest directions of the clean-vs-poisoned difference "
        "out of every module's output",
        projected=removed,
    )


METHODS.register("project-difference")(
    Method(
        about="project the clean-vs-poisoned difference out of every module",
        source="adapter surgery of the Llama-3.2 LoRA unlearning work, in factor form",
        config=ProjectDifferenceConfig,
        run=project_difference,
        kind=CUT,
        needs=(CLEAN_ADAPTER,),
    )
)
