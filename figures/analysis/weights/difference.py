"""What separates the poisoned from the clean adapter: size, directions and spectrum."""

import numpy as np

from ....core.records.results import RunRecords
from ....core.records.spectra import Difference
from ...base.figure import FIGURES, Figure
from ...base.grid import Layout, add_map, height, layout, root_sum_of_squares
from ...base.text import number, percent
from ...base.theme import PURPLE, largest, magnitude, panels
from .spectra import Lines, spectrum_lines


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
                [
                    Lines(
                        name="poisoned − clean",
                        colour=PURPLE,
                        modules=item.modules,
                        values=item.singular_values,
                    )
                ]
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


def ratios(item: Difference) -> np.ndarray:
    """Norm of poisoned - clean over that of poisoned, ``[module]``; NaN where poisoned is 0."""
    whole = np.where(item.poisoned_norm > 0, item.poisoned_norm, np.nan)
    return item.difference_norm / whole


def _ratio(item: Difference, place: Layout) -> Figure:
    whole = place.fill(item.poisoned_norm, root_sum_of_squares)
    apart = place.fill(item.difference_norm, root_sum_of_squares)
    clean = place.fill(item.clean_norm, root_sum_of_squares)
    z = apart / np.where(whole > 0, whole, np.nan)
    plot = panels(["‖poisoned − clean‖ / ‖poisoned‖"], height=height(len(place.layers)))
    hover = [
        [
            f"{name}<br>{number(float(z[r, c]))} of the poisoned norm"
            f"<br>poisoned {number(float(whole[r, c]))}, clean {number(float(clean[r, c]))}, "
            f"difference {number(float(apart[r, c]))}"
            for c, name in enumerate(line)
        ]
        for r, line in enumerate(place.names())
    ]
    add_map(plot, place, z, hover, column=1, axis="coloraxis")
    plot.update_yaxes(title_text="layer")
    plot.update_layout(coloraxis=magnitude(largest(z), "ratio"))
    each = ratios(item)
    if np.isfinite(each).any():
        best = int(np.nanargmax(each))
        alt = f"Largest ratio {number(float(each[best]))} in {item.modules[best]}."
    else:
        alt = "The ratio is undefined: the poisoned change is 0 in every module."
    total = root_sum_of_squares(item.poisoned_norm)
    share = root_sum_of_squares(item.difference_norm) / total if total > 0 else float("nan")
    return Figure(
        id="difference-norm",
        title="How far poisoned is from clean",
        plot=plot,
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
    plot = panels(
        titles, height=height(len(place.layers)) + 30, shared_yaxes=True, horizontal_spacing=0.02
    )
    for column, values in enumerate(parts, 1):
        z = place.fill(values, np.min)
        hover = [
            [
                f"{name}<br>{titles[column - 1]}: {number(float(z[r, c]))}°"
                for c, name in enumerate(line)
            ]
            for r, line in enumerate(place.names())
        ]
        add_map(plot, place, z, hover, column=column, axis="coloraxis")
    axis = magnitude(90.0, "degrees")
    axis["colorbar"] |= {"tickvals": [0, 30, 60, 90]}
    plot.update_xaxes(tickangle=-50)
    plot.update_yaxes(title_text="layer", col=1)
    plot.update_layout(coloraxis=axis)
    medians = [float(np.nanmedian(p)) if np.isfinite(p).any() else float("nan") for p in parts]
    return Figure(
        id="difference-angles",
        title="Angles between the clean and the poisoned subspaces",
        plot=plot,
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
