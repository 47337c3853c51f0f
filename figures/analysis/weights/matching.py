"""Which directions of the poisoned change have no counterpart in the clean one."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.results import RunRecords
from ....core.records.spectra import Matching
from ...base.figure import FIGURES, Figure
from ...base.grid import kind_of, layout
from ...base.maps import layer_map, layer_name, module_panel
from ...base.quantities import Quantity
from ...base.text import number, percent, plural
from ...base.theme import GREY, VERMILLION, magnitude, panels, single, text

SHOWN = 400
"""Directions of each sort that are drawn, the strongest first."""


@FIGURES.register("matching")
def matching(records: RunRecords) -> list[Figure]:
    """Shares of every direction inside the clean spaces, and the part of each module outside."""
    item = records.first(Matching)
    if item is None or not len(item.sigma):
        return []
    return [_shares(item), _outside(item)]


def direction_name(item: Matching, index: int) -> str:
    """Short name of a direction: layer, kind, place in the spectrum from 0."""
    module = int(item.direction_module[index])
    layer = int(item.layers[module])
    head = layer_name(layer)
    expert = item.modules[module].partition("#")[2]
    kind = kind_of(item.modules[module]) + (f" {expert}" if expert else "")
    return f"{head} {kind} #{int(item.direction_place[index])}"


def _strongest(item: Matching, chosen: np.ndarray) -> np.ndarray:
    index = np.flatnonzero(chosen)
    return index[np.argsort(-item.sigma[index])][:SHOWN]


def _weight(sigma: np.ndarray, chosen: np.ndarray) -> str:
    total = float((sigma**2).sum())
    return percent(float((sigma[chosen] ** 2).sum()) / total) if total > 0 else "undefined"


def _shares(item: Matching) -> Figure:
    plot = panels([""], height=460)
    out, odd = item.standing_out, item.unmatched & ~item.standing_out
    sorts = (
        ("matched", ~item.unmatched, GREY, "circle", 6),
        ("unmatched, as weak as the control's", odd, VERMILLION, "diamond-open", 8),
        ("unmatched and stronger than the control's", out, VERMILLION, "diamond", 13),
    )
    for name, chosen, colour, symbol, size in sorts:
        index = _strongest(item, chosen)
        plot.add_trace(
            go.Scatter(
                x=single(item.input_share[index]),
                y=single(item.output_share[index]),
                mode="markers",
                name=f"{name} ({int(chosen.sum()):,})",
                marker={"color": colour, "symbol": symbol, "size": size, "opacity": 0.75},
                hovertext=[_hover(item, int(i)) for i in index],
                hoverinfo="text",
            )
        )
    plot.update_xaxes(title_text="share of v inside the clean input space", range=[0, 1.02])
    plot.update_yaxes(title_text="share of u inside the clean output space", range=[0, 1.02])
    plot.update_layout(margin={"t": 72})
    control = item.reverse_unmatched
    total = len(item.sigma)
    return Figure(
        id="matching-shares",
        title="Poisoned directions with and without a clean counterpart",
        plot=plot,
        caption=(
            f"Every point is a singular direction of the poisoned change. Unmatched: "
            f"{int(item.unmatched.sum()):,} of {plural(total, 'direction')} "
            f"({_weight(item.sigma, item.unmatched)} of the squared norm) are on at least one side "
            f"no further inside the clean space than by chance (level {number(item.level)}). "
            f"Control, clean directions against the poisoned adapter: {int(control.sum()):,} of "
            f"{len(control):,} ({_weight(item.reverse_sigma, control)}). At most the strongest "
            f"{SHOWN} of each sort are drawn." + (f" {item.undefined}." if item.undefined else "")
        ),
        how_to_read=(
            "Right and up: the clean adapter reads and writes there too. Weak directions are noise "
            "in any training, which is what the control counts; only filled diamonds are stronger "
            "than all of that. A backdoor can also hide in matched directions."
        ),
        alt=_alt(item),
    )


def _alt(item: Matching) -> str:
    count = int(item.standing_out.sum())
    head = f"{int(item.unmatched.sum())} of {len(item.sigma)} poisoned directions are unmatched"
    if not count:
        return f"{head}; none is stronger than the control's unmatched directions."
    best = int(_strongest(item, item.standing_out)[0])
    return (
        f"{head}; {count} stronger than the control's, first {direction_name(item, best)} with "
        f"singular value {number(float(item.sigma[best]))}."
    )


def _hover(item: Matching, index: int) -> str:
    module = int(item.direction_module[index])
    partner = int(item.partner[index])
    match = "none left" if partner < 0 else f"#{partner}"
    return (
        f"{text(item.modules[module], limit=80)}, direction {int(item.direction_place[index])}"
        f"<br>σ {number(float(item.sigma[index]))}, p {number(float(item.p_value[index]))}"
        f"<br>input share {number(float(item.input_share[index]))} "
        f"(chance up to {number(float(item.input_chance[module]))})"
        f"<br>output share {number(float(item.output_share[index]))} "
        f"(chance up to {number(float(item.output_chance[module]))})"
        f"<br>clean partner {match}, similarity {number(float(item.similarity[index]))} "
        f"(chance {number(float(item.similarity_chance[module, 0]))}, 95 % below "
        f"{number(float(item.similarity_chance[module, 1]))})"
    )


def _outside(item: Matching) -> Figure:
    place = layout(item.modules, item.layers)
    titles = ["poisoned outside clean", "control: clean outside poisoned"]
    parts = (1 - item.inside, 1 - item.reverse_inside)
    filled = [
        module_panel(place, title, Quantity(f"{title}:", place.fill(values, np.mean), "%"))
        for title, values in zip(titles, parts, strict=True)
    ]
    medians = [float(np.nanmedian(p)) if np.isfinite(p).any() else np.nan for p in parts]
    return Figure(
        id="matching-outside",
        title="How much of each change lies outside the other adapter's spaces",
        plot=layer_map(filled, magnitude(1.0, "share")),
        caption=(
            "Share of the change's squared norm outside the spaces that the other adapter reads "
            f"from and writes to. Median over the modules: {percent(medians[0])}, control "
            f"{percent(medians[1])}. Experts of one module are averaged."
        ),
        how_to_read=(
            "Bright: this module does something the clean training did not do there, or did in "
            "other directions. Compare with the control: two trainings always differ, and only "
            "what is brighter on the left needs an explanation."
        ),
        alt=f"Largest share outside: {filled[0].strongest()}; "
        f"medians {percent(medians[0])} and {percent(medians[1])}.",
    )
