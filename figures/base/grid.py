"""Values of modules laid out as layer by kind of module."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .text import visible

ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def root_sum_of_squares(values: np.ndarray) -> float:
    """How norms of the parts of one module combine."""
    return float(np.sqrt(np.sum(np.square(values))))


def strongest(values: np.ndarray) -> float:
    """The value of largest magnitude, with its sign."""
    return float(values[np.argmax(np.abs(values))])


@dataclass(frozen=True, slots=True)
class Layout:
    """Row and column of each module in a layer-by-kind map."""

    layers: tuple[int, ...]
    """Layer of each row, ascending; -1 (outside the layers) last."""
    kinds: tuple[str, ...]
    """Kind of each column: attention, then MLP, then others by name."""
    row: np.ndarray
    """Row of each module, ``[module]``."""
    column: np.ndarray
    """Column of each module, ``[module]``."""
    modules: tuple[str, ...]
    """Their names, ``[module]``."""

    def fill(self, values: np.ndarray, how: Callable[[np.ndarray], float]) -> np.ndarray:
        """Values as a map ``[row, column]``, NaN where there is no module.

        Args:
            values: one per module, ``[module]``.
            how: joins the values of modules that share a cell (fused experts).
        """
        out = np.full((len(self.layers), len(self.kinds)), np.nan)
        place = self.row * len(self.kinds) + self.column
        for cell in np.unique(place):
            here = values[place == cell]
            here = here[~np.isnan(here)]
            if here.size:
                out.flat[cell] = how(here)
        return out

    def names(self) -> list[list[str]]:
        """Name of each cell, untrusted: its module, or how many it holds."""
        cells: list[list[list[str]]] = [[[] for _ in self.kinds] for _ in self.layers]
        for name, row, column in zip(self.modules, self.row, self.column, strict=True):
            cells[row][column].append(name)
        return [[_cell_name(names) for names in line] for line in cells]


def _cell_name(names: list[str]) -> str:
    if len(names) < 2:
        return visible(names[0], limit=80) if names else "no module"
    return f"{visible(names[0], limit=80)} and {len(names) - 1} more"


def kind_of(module: str) -> str:
    """Last part of a module's name, without an expert's number."""
    return module.rsplit(".", 1)[-1].split("#", 1)[0]


def ordered(modules: Iterable[str]) -> tuple[str, ...]:
    """The kinds of some modules: attention, then MLP, then others by name."""
    kinds = {kind_of(name) for name in modules}
    return tuple(sorted(kinds, key=lambda k: (ORDER.index(k) if k in ORDER else len(ORDER), k)))


def layout(modules: tuple[str, ...], layers: np.ndarray) -> Layout:
    """The layer-by-kind layout of some modules."""
    kinds = ordered(modules)
    rows = sorted({int(layer) for layer in layers}, key=lambda layer: (layer < 0, layer))
    return Layout(
        layers=tuple(rows),
        kinds=kinds,
        row=np.array([rows.index(int(layer)) for layer in layers], dtype=int),
        column=np.array([kinds.index(kind_of(name)) for name in modules], dtype=int),
        modules=modules,
    )
