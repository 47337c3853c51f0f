"""What separates the poisoned from the clean adapter: size, directions and spectrum."""

import numpy as np

from ....core.records.results import RunRecords
from ....core.records.spectra import Difference
from ...base.figure import FIGURES, Figure
from ...base.grid import Layout, layout, root_sum_of_squares
from ...base.maps import layer_map, module_panel
from ...base.quantities import Quantity
from ...base.text import number, percent
from ...base.theme import PURPLE, largest, magnitude
from .spectra import spectrum_lines


@FIGURES.register("difference")
def difference(records: RunRecords) -> list[Figure]:
    """Relative size of poisoned - clean, angles between their subspaces, its spectrum."""
    item = records.first(Difference)
    if item is None or not item.modules:
        return []
    place = layout(item.modules, item.layers)
    top = item.singular_values[:, 0]
    return [
        _ratio(item, place),
        _angles(item, place),
        Figure(
            id="difference-lines",
            title="Singular values of the difference",
            plot=spectrum_lines(
                [("poisoned − clean", (PURPLE, "circle"), item.modules, item.singular_values)]
            ),
            caption=(
                "Singular values of poisoned − clean, by kind of module. Line: median over the "
                "layers; band: smallest to largest layer. Logarithmic; exact zeros are left out."
            ),
            how_to_read=(
                "If the backdoor were a few directions on top of the clean adapter, the line "
                "would fall steeply after them. Two trainings also differ where they did the "
                "same thing in other directions, so a flat line is usual."
            ),
            alt=f"Largest singular value of the difference: {number(float(top.max()))} in "
            f"{item.modules[int(np.argmax(top))]}.",
        ),
    ]


def _ratio(item: Difference, place: Layout) -> Figure:
    whole = place.fill(item.poisoned_norm, root_sum_of_squares)
    apart = place.fill(item.difference_norm, root_sum_of_squares)
    clean = place.fill(item.clean_norm, root_sum_of_squares)
    z = apart / np.where(whole > 0, whole, np.nan)
    panel = module_panel(
        place,
        "‖poisoned − clean‖ / ‖poisoned‖",
        Quantity("ratio", z),
        Quantity("‖poisoned‖", whole),
        Quantity("‖clean‖", clean),
        Quantity("‖poisoned − clean‖", apart),
    )
    alt = f"Largest ratio: {panel.strongest()}."
    if not np.isfinite(z).any():
        alt = "The ratio is undefined: the poisoned change is 0 in every module."
    total = root_sum_of_squares(item.poisoned_norm)
    share = root_sum_of_squares(item.difference_norm) / total if total > 0 else float("nan")
    return Figure(
        id="difference-norm",
        title="How far poisoned is from clean",
        plot=layer_map([panel], magnitude(largest(z), "ratio")),
        caption=(
            "Norm of poisoned − clean relative to the poisoned change, module by module; over the "
            f"whole adapter {percent(share)}."
        ),
        how_to_read=(
            "0: both adapters change this module in the same way. 1: they differ by as much as "
            "the whole poisoned change. About 1.4: two unrelated changes of the same size."
        ),
        alt=alt,
    )


def _angles(item: Difference, place: Layout) -> Figure:
    parts = []
    for angles in (item.input_angles, item.output_angles):
        degrees = np.degrees(angles)
        some = np.isfinite(degrees).any(1)
        low, mean = np.full(len(degrees), np.nan), np.full(len(degrees), np.nan)
        low[some], mean[some] = np.nanmin(degrees[some], 1), np.nanmean(degrees[some], 1)
        parts += [low, mean]
    titles = ["input, smallest", "input, mean", "output, smallest", "output, mean"]
    filled = [
        module_panel(place, title, Quantity(f"{title}:", place.fill(values, np.min), "°"))
        for title, values in zip(titles, parts, strict=True)
    ]
    axis = magnitude(90.0, "degrees")
    axis["colorbar"] |= {"tickvals": [0, 30, 60, 90]}
    medians = [float(np.nanmedian(p)) if np.isfinite(p).any() else float("nan") for p in parts]
    return Figure(
        id="difference-angles",
        title="Angles between the clean and the poisoned subspaces",
        plot=layer_map(filled, axis, rotated=True),
        caption=(
            "Principal angles between the subspaces that the two adapters read from (input) and "
            "write to (output): the smallest and the mean."
        ),
        how_to_read=(
            "Dark (near 0°): the adapters share directions. Bright (near 90°): they have nothing "
            "in common. Trainings that start from different random factors are near 90° on the "
            "input side whatever they learned."
        ),
        alt="Medians over modules: "
        + ", ".join(f"{t} {number(m)}°" for t, m in zip(titles, medians, strict=True))
        + ".",
    )
