"""Effects of all cells estimated by gradients, and how close they are to the exact ones."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.patching import Screening, ScreeningAgreement
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure, slug, unique
from ...base.maps import Panel, block_words, layer_map
from ...base.quantities import Quantity, written
from ...base.text import interval, number, plural, token
from ...base.theme import (
    BLUE,
    GREY,
    MUTED,
    ORANGE,
    diverging,
    largest,
    panels,
    single,
    text,
)
from .patching import PARTS

KINDS = {"z": "heads", "lora": "modules", "experts": "experts", "router": "experts"}
METHODS = {"attribution": "first-order attribution", "integrated": "integrated gradients"}


@FIGURES.register("screening")
def screening(records: RunRecords) -> list[Figure]:
    """For each pair of runs: maps of the integrated effect, and both ways against the exact one."""
    taken: set[str] = set()
    out = []
    for item in records.of(Screening):
        end = slug(item.setting)
        kinds = dict.fromkeys(KINDS.get(kind, "sites") for kind in item.kinds)
        for kind in kinds:
            values = _shown(item, kind)
            if np.isfinite(values[0]).any():
                out.append(_map(item, kind, values, unique(f"screening-{kind}-{end}", taken)))
        if np.isfinite(item.exact[..., 0]).any():
            out.append(_agreement(item, unique(f"screening-exact-{end}", taken)))
    return out


def _shown(item: Screening, kind: str) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Integrated effects ``[panel, layer, place, 3]``, the panels' names and the places'.

    For parts of a layer: a panel for each column of the prompt, a column for each part.
    """
    mine = [i for i, k in enumerate(item.kinds) if KINDS.get(k, "sites") == kind]
    values, names = item.integrated[mine], tuple(item.sites[i] for i in mine)
    if kind == "sites":
        return values, names, item.columns
    best = np.nan_to_num(np.abs(values[..., 0])).max((0, 1))
    few = np.sort(np.argsort(-best, kind="stable")[:4])
    return np.moveaxis(values[:, :, few], 2, 0).swapaxes(1, 2), tuple(
        item.columns[c] for c in few
    ), names  # fmt: skip


def _map(item: Screening, kind: str, shown: tuple, name: str) -> Figure:
    values, titles, places = shown
    count, layers = values.shape[:2]
    parts = [
        Panel(
            title=title,
            quantities=[Quantity("effect", effect)],
            layers=range(layers),
            columns=places,
        )
        for title, effect in zip(titles, values, strict=True)
    ]
    limit = largest(values[..., 0]) or 1.0
    what = "layers and places" if kind == "sites" else PARTS[kind]
    left = len(item.columns) - count if kind != "sites" else 0
    caption = _intro(item)
    if left > 0:
        caption += f" The {plural(left, 'place')} of the prompt with the least effect left out."
    strongest = max(parts, key=lambda part: largest(part.values))
    return Figure(
        id=name,
        title=f"Screened by integrated gradients: {what} ({item.setting})",
        plot=layer_map(parts, diverging(limit, "effect"), rotated=True),
        caption=caption + block_words(parts),
        how_to_read=(
            "Each cell estimates how the metric moves when the activation of one run is written "
            "into the other there and nowhere else. Orange: up, blue: down. It is an estimate from "
            "gradients, made for all cells at once; the next figure compares it with exact "
            "effects. Effects of places, layers and sites do not add up."
        ),
        alt=f"Strongest estimate: {token(strongest.title)}, {strongest.strongest(magnitude=True)}.",
    )


def _intro(item: Screening) -> str:
    parts = [
        f"Activations of {item.source_name} written into {item.into_name} ({item.direction}); "
        f"metric: {item.metric}, mean over {plural(len(item.prompts), 'prompt')}: "
        f"{number(float(item.source.mean()))} in the one run, {number(float(item.into.mean()))} in "
        f"the other. Gradients at {plural(item.steps, 'point')} of the way; number format "
        f"{item.dtype}.",
        _completeness(item),
    ]
    if item.left_out:
        parts.append(f"Left out: {item.left_out}.")
    return " ".join(part for part in parts if part)


def _completeness(item: Screening) -> str:
    """How far the integrated effects of whole layers are from the exact ones, as a sentence."""
    gap = np.abs(item.whole - item.whole_integrated)
    if not np.isfinite(gap).any():
        return ""
    block, layer = (int(i) for i in np.unravel_index(int(np.nanargmax(gap)), gap.shape))
    return (
        f"Check: summed over all positions they should be the exact effect of writing a whole "
        f"layer; the largest gap is {number(float(gap[block, layer]))}, for {item.blocks[block]} "
        f"at layer {layer} ({number(float(item.whole_integrated[block, layer]))} against "
        f"{number(float(item.whole[block, layer]))}): more steps narrow it."
    )


def _found(item: Screening, method: str, cells: str) -> ScreeningAgreement | None:
    return next((a for a in item.agreements if (a.method, a.cells) == (method, cells)), None)


def _agreement(item: Screening, name: str) -> Figure:
    plot = panels(list(METHODS.values()), height=420, horizontal_spacing=0.1, shared_yaxes=True)
    ways = (item.attribution, item.integrated)
    chosen = item.top | item.random
    for column, values in enumerate(ways, 1):
        both = np.concatenate([values[..., 0][chosen], item.exact[..., 0][chosen]])
        ends = single([np.nanmin(both), np.nanmax(both)])
        line = {"color": GREY, "dash": "dash", "width": 1}
        plot.add_trace(
            go.Scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False),
            row=1, col=column,
        )  # fmt: skip
        for cells, label, colour, symbol in (
            (item.top, "strongest by integrated gradients", BLUE, "circle"),
            (item.random, "random others", ORANGE, "diamond-open"),
        ):
            plot.add_trace(
                _points(item, values, cells, label, colour, symbol, column == 1), 1, column
            )
    plot.update_xaxes(title_text="estimated effect", zeroline=True, zerolinecolor=MUTED)
    plot.update_yaxes(zeroline=True, zerolinecolor=MUTED)
    plot.update_yaxes(title_text="exact effect", row=1, col=1)
    plot.update_layout(margin={"t": 78})
    whole = max(item.all_cells, 1)
    caption = (
        f"{plural(int(chosen.sum()), 'cell')} patched exactly: {int(item.top.sum())} for their "
        f"integrated effect, {int(item.random.sum())} random ones of those in which "
        f"something differs. {_agreement_words(item)} Cost in passes of one prompt: "
        f"{item.attribution_passes:,} forward and backward for attribution, "
        f"{item.integrated_passes:,} for integrated gradients, {item.exact_passes:,} patched runs "
        f"for these cells; an exact sweep would take {whole:,}. Checks: patching a run with itself "
        f"moves the metric by at most {number(item.self_error)}; whole forward passes differ by at "
        f"most {number(item.loop_error)}."
    )
    if item.undefined:
        caption = f"The agreement is undefined: {item.undefined}. {caption}"
    return Figure(
        id=name,
        title=f"Estimated against exact effects ({item.setting})",
        plot=plot,
        caption=caption,
        how_to_read=(
            "Each point is one cell that was also patched exactly; on the dashed line the estimate "
            "is right. The strongest cells were picked by integrated gradients, which favours that "
            "method: the random ones are fair to both. Where points leave the line, only the exact "
            "values count. A column of points at 0 in the left panel is a flat metric: its "
            "slope there does not show how far it would fall."
        ),
        alt=_agreement_words(item),
    )


def _points(
    item: Screening,
    values: np.ndarray,
    cells: np.ndarray,
    label: str,
    colour: str,
    symbol: str,
    legend: bool,
) -> go.Scatter:
    return go.Scatter(
        x=single(values[..., 0][cells]),
        y=single(item.exact[..., 0][cells]),
        mode="markers",
        name=label,
        legendgroup=label,
        showlegend=legend,
        marker={"color": colour, "symbol": symbol, "size": 8, "opacity": 0.8},
        hovertext=[
            f"{text(item.sites[s])}, layer {layer}, {text(item.columns[c], limit=40)}"
            f"<br>estimated {written(values[s, layer, c])}"
            f"<br>exact {written(item.exact[s, layer, c])}"
            for s, layer, c in np.argwhere(cells).tolist()
        ],
        hoverinfo="text",
    )


def _agreement_words(item: Screening) -> str:
    parts = []
    for method, name in METHODS.items():
        every, blind = _found(item, method, "checked"), _found(item, method, "random")
        if every is None or blind is None:
            continue
        signs = f", sign right in {every.signs.value:.0%} of {every.signs.n}" if every.signs else ""
        parts.append(
            f"{name} {number(every.spearman)} {interval(every.low, every.high)} "
            f"({number(blind.spearman)} on the {blind.n} random ones; error "
            f"{number(every.error)} of the exact effects{signs})"
        )
    return f"Rank correlation with the exact effects: {'; '.join(parts)}."
