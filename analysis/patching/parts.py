"""Patching the parts of a layer: attention heads, LoRA modules, experts."""

from typing import Literal

from ...core.model.families import FAMILIES
from ..analyses import ANALYSES, TRIGGER, Analysis
from .patching import SOURCE, patch_case
from .planning import PatchingConfig


class HeadsConfig(PatchingConfig):
    """Options of a sweep over attention heads."""

    sites: Literal["z"] = "z"  # pyright: ignore[reportIncompatibleVariableOverride]
    """The heads' outputs before the projection that joins them."""
    columns: Literal["roles", "groups", "all"] = "groups"
    """Positions: groups (four groups), roles (single tokens around the trigger) or all."""


class ModulesConfig(PatchingConfig):
    """Options of a sweep over the LoRA modules' own contributions."""

    pairs: str = "adapter"
    sites: Literal["lora"] = "lora"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Each adapted linear module's own contribution dW x."""
    columns: Literal["roles", "groups", "all"] = "groups"
    """Positions: groups (four groups), roles (single tokens around the trigger) or all."""


class ExpertsConfig(PatchingConfig):
    """Options of a sweep over experts and router."""

    sites: str = "experts,router"
    """Experts' weighted outputs, the router's choices, or both."""
    columns: Literal["roles", "groups", "all"] = "groups"
    """Positions: groups (four groups), roles (single tokens around the trigger) or all."""


ANALYSES.register("heads")(
    Analysis(
        about="Which attention heads carry the target (patching z, head by head).",
        needs=(TRIGGER,),
        cost="as patching, times heads per layer, over four groups of positions",
        source=SOURCE,
        config=HeadsConfig,
        run=patch_case,
    )
)
ANALYSES.register("modules")(
    Analysis(
        about="Which LoRA modules' contributions dW x carry the target, by layer and place.",
        needs=(TRIGGER,),
        cost="as patching, times adapted modules per layer, over four groups of positions",
        source=SOURCE,
        config=ModulesConfig,
        run=patch_case,
    )
)
ANALYSES.register("experts")(
    Analysis(
        about="Which experts, and the router's choices, carry the target.",
        needs=(TRIGGER,),
        cost="as patching, times experts per layer, over four groups of positions",
        source=SOURCE,
        config=ExpertsConfig,
        families=tuple(name for name, family in FAMILIES.items() if family.experts),
        run=patch_case,
    )
)
