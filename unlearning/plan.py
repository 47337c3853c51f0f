"""Plans written by hand: which directions are cut or scaled, entry by entry."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator

from ..analysis.localisation.gates import Directions, directions_of
from ..analysis.material import Material
from ..core.adapter.algebra import scale_directions
from ..core.config import Config, Layers, Whole
from ..core.errors import LoratomyError
from ..core.files.tomlfiles import read_toml
from ..training.recipe import Words, validated
from .cuts.cuts import in_layers, in_modules, labelled, weakest
from .method import CUT, METHODS, Method, Outcome

EXAMPLE = """
[[cut]]
layers = "2-4"
modules = ["down_proj", "o_proj"]
beyond_rank = 1

[[cut]]
directions = ["model.layers.5.mlp.down_proj:0"]

[[scale]]
layers = [0, 1]
factor = 0.5
"""
"""A plan: of two module kinds in three layers keep the strongest direction, take one direction out,
halve two layers."""
SELECTORS = ("layers", "modules", "directions", "beyond_rank", "beyond_energy")


Names = Annotated[Words, Field(min_length=1)]


class PlanEntry(Config):
    """What an entry is about: the directions that all of its given selectors agree on."""

    layers: Layers | None = None
    """Layers: numbers and ranges, ``[0, "2-4"]``."""
    modules: Names | None = None
    """Module kinds (``down_proj``) or full names."""
    directions: Names | None = None
    """Singular directions: ``module:number`` (``module#e2:number`` for expert 2), numbered from 0
    by strength in the adapter operated on."""
    beyond_rank: Whole | None = None
    """All but the strongest directions of each module, this many kept."""
    beyond_energy: float | None = Field(None, gt=0, le=1, strict=True)
    """All but the fewest directions that hold this share of a module's squared singular values."""

    @model_validator(mode="after")
    def _some(self) -> "PlanEntry":
        if all(getattr(self, name) is None for name in SELECTORS):
            raise ValueError(f"names nothing, give {', '.join(SELECTORS[:-1])} or {SELECTORS[-1]}")
        return self


class CutEntry(PlanEntry):
    """Directions to take out."""


class ScaleEntry(PlanEntry):
    """Directions to make weaker or stronger."""

    factor: float = Field(ge=0, strict=True)
    """What their singular values are multiplied by; 0 cuts."""


class PlanConfig(Config):
    """The entries of a plan.

    Every entry selects from the adapter as it was before the plan, and what entries do to a
    direction multiplies: one that is cut stays cut, two scales of a half leave a quarter.
    """

    cut: tuple[CutEntry, ...] = ()
    """Entries that remove directions."""
    scale: tuple[ScaleEntry, ...] = ()
    """Entries that multiply the singular values of directions."""


def read_plan(path: Path) -> PlanConfig:
    """The plan in a TOML file of ``[[cut]]`` and ``[[scale]]`` entries, see `EXAMPLE`.

    Raises:
        LoratomyError: no such file, invalid TOML (duplicate keys among it), no entries, unknown or
            wrong keys; names the file, the entry's number and the nearest known key.
    """
    raw = read_toml(path, "plan")
    kinds: dict[str, type[PlanEntry]] = {"cut": CutEntry, "scale": ScaleEntry}
    for kind, model in kinds.items():
        entries = raw.get(kind, [])
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise LoratomyError(f"plan {path.name}: write [[{kind}]] above each entry, twice [ ]")
        where = f"plan {path.name}, {kind} {{}}"
        if entries:
            raw[kind] = [validated(model, e, where.format(i)) for i, e in enumerate(entries, 1)]
    plan = validated(PlanConfig, raw, f"plan {path.name}")
    if not plan.cut and not plan.scale:
        raise LoratomyError(f"plan {path.name} is empty: give a [[cut]] or a [[scale]] entry")
    return plan


def selected(d: Directions, entry: PlanEntry, where: str) -> np.ndarray:
    """The directions that an entry is about, ``[direction]`` booleans.

    Args:
        d: directions of the adapter operated on.
        entry: its selectors; what all given ones agree on is selected.
        where: the entry by name, for errors.

    Raises:
        LoratomyError: something named is not there, or nothing is selected.
    """
    picked = np.ones(len(d), bool)
    try:
        if entry.layers is not None:
            picked &= in_layers(d, entry.layers)
        if entry.modules is not None:
            picked &= in_modules(d, entry.modules)
        if entry.directions is not None:
            picked &= labelled(d, entry.directions)
    except LoratomyError as error:
        raise LoratomyError(f"{where}: {error}") from error
    if entry.beyond_rank is not None:
        picked &= weakest(d, rank=entry.beyond_rank)
    if entry.beyond_energy is not None:
        picked &= weakest(d, energy=entry.beyond_energy)
    if not picked.any():
        given = {name: getattr(entry, name) for name in SELECTORS}
        selectors = " and ".join(f"{k} {_words(v)}" for k, v in given.items() if v is not None)
        raise LoratomyError(f"{where} selects no direction: none is in {selectors}")
    return picked


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) else f"{value:g}"


def gates_of(d: Directions, config: PlanConfig) -> tuple[np.ndarray, list[int]]:
    """What a plan multiplies each direction by, ``[direction]``, and the cut ones in its order.

    Raises:
        LoratomyError: no entries, one that names what is not there, or a plan without effect.
    """
    gates, order = np.ones(len(d)), []
    for i, entry in enumerate(config.cut, 1):
        picked = selected(d, entry, f"cut {i} of the plan")
        gates[picked] = 0
        order += np.flatnonzero(picked).tolist()
    for i, entry in enumerate(config.scale, 1):
        picked = selected(d, entry, f"scale {i} of the plan")
        gates[picked] *= entry.factor
        order += np.flatnonzero(picked & (gates == 0)).tolist()
    if (gates == 1).all():
        raise LoratomyError(
            "the plan changes nothing: give a [[cut]], or a [[scale]] with a factor other than 1"
        )
    return gates, list(dict.fromkeys(order))


def plan(material: Material, config: PlanConfig) -> Outcome:
    """Multiply singular values by the plan's factors, 0 for what it cuts."""
    d = directions_of(material.start)
    gates, order = gates_of(d, config)
    cut = gates == 0
    scaled = int((~cut & (gates != 1)).sum())
    entries = [(len(config.cut), "cut"), (len(config.scale), "scale")]
    counts = " and ".join(f"{n} {kind}{'s' * (n > 1)}" for n, kind in entries if n)
    others = [i for i in range(len(d)) if not cut[i]]
    return Outcome(
        scale_directions(d.adapter, d.gates(torch.as_tensor(gates, dtype=torch.float32))),
        f"plan of {counts}: {cut.sum()} of {len(d)} singular directions cut, {scaled} scaled",
        cut=cut,
        order=np.array([*order, *others]),
    )


METHODS.register("plan")(
    Method(
        about="a plan written by hand: directions cut or scaled (operate RUN --plan FILE)",
        source="Loratomy",
        config=PlanConfig,
        run=plan,
        kind=CUT,
    )
)
