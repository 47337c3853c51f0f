"""Which tokens the adapter listens for and writes, as a whole and direction by direction."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.lens import Lens, Preference
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure
from ...base.grid import kind_of
from ...base.maps import layer_name
from ...base.text import number, plural, token
from ...base.theme import BLUE, GREY, MUTED, VERMILLION, named, panels, single, text

TOKENS = 20
"""Tokens named in each panel."""
DIRECTIONS = 16
"""Directions named one by one."""
WORDS = 4
"""Tokens written beside a direction."""


@FIGURES.register("lens")
def lens(records: RunRecords) -> list[Figure]:
    """Preferred tokens of the whole adapter, and the directions that stand out most."""
    item = records.first(Lens)
    if item is None:
        return []
    return [_whole(item)] + ([_directions(item)] if item.modules else [])


def _whole(item: Lens) -> Figure:
    sides = {"listens for": item.listening, "writes": item.writing}
    plot = panels(list(sides), height=130 + 22 * TOKENS, horizontal_spacing=0.16)
    for column, side in enumerate(sides.values(), 1):
        if side.undefined:
            reason = text(side.undefined, limit=90)
            plot.add_annotation(text=reason, showarrow=False, x=0.5, y=0.5, row=1, col=column)
            continue
        _strengths(plot, side, column, legend=column == 2 or bool(item.writing.undefined))
        plot.add_vline(side.null, line={"dash": "dash", "color": MUTED}, row=1, col=column)  # pyright: ignore[reportArgumentType]
    plot.update_xaxes(title_text="strength (1: random direction)", rangemode="tozero")
    plot.update_layout(legend={"y": 1.06}, margin={"t": 84})
    return Figure(
        id="lens-tokens",
        title="Tokens that the adapter listens for and writes",
        plot=plot,
        caption=" ".join(
            (
                f"Listening: squared gain of {_kinds(item.listening)} for what each of "
                f"{item.listening.compared:,} tokens puts into the residual stream, read behind "
                "the first token of every prompt.",
                f"Writing: squared gain of {_kinds(item.writing)} towards what raises a token's "
                "logit. Both are 1 for a random direction; dashed: 95 % quantile of the highest "
                "token for random directions of the same singular values "
                f"({number(item.listening.null)} and {number(item.writing.null)}).",
                wanted_words(item.listening, "the trigger"),
                wanted_words(item.writing, "the targets' beginning"),
            )
        ).strip(),
        how_to_read=(
            "Neither side needs the trigger: they are read from base and adapter. A clean adapter "
            "also prefers the tokens of its task, so compare with its mark where there is one. "
            "Tokens of a target are easier to see than tokens of a trigger: writing is a direct "
            "path to the logits, while a trigger of several common tokens is recognised by their "
            "order, which no single token shows."
        ),
        alt=f"Listened for most: {_first(item.listening)}. Written most: {_first(item.writing)}.",
    )


def _strengths(plot: go.Figure, side: Preference, column: int, *, legend: bool) -> None:
    ids, labels = side.ids[:TOKENS], [f"“{token(t, limit=18)}”" for t in side.tokens[:TOKENS]]
    wanted = np.isin(ids, side.wanted_ids)
    series = [
        ("adapter", side.values, ~wanted, VERMILLION, "diamond-open"),
        ("adapter, token of trigger or target", side.values, wanted, VERMILLION, "diamond"),
        ("clean adapter", side.clean, np.ones(len(ids), bool), BLUE, "square-open"),
    ]
    for name, values, keep, colour, symbol in series:
        if values is None or not keep.any():
            continue
        shown = values[ids][keep]
        plot.add_trace(
            go.Scatter(
                x=single(shown),
                y=np.flatnonzero(keep).tolist(),
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=legend,
                marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 2}},
                hovertext=[
                    f"{text(labels[i], limit=40)}, {name}<br>strength {number(float(v))}"
                    for i, v in zip(np.flatnonzero(keep), shown, strict=True)
                ],
                hoverinfo="text",
            ),
            row=1,
            col=column,
        )
    axis = named(labels) | {"range": [len(labels) - 0.5, -0.5], "showgrid": True}
    plot.update_yaxes(**axis, row=1, col=column)


def _kinds(side: Preference) -> str:
    return ", ".join(side.kinds) if side.kinds else "no module"


def _first(side: Preference) -> str:
    if side.undefined:
        return f"nothing ({side.undefined})"
    found = zip(side.tokens[:3], side.ids[:3], strict=True)
    return ", ".join(
        f"“{token(t, limit=18)}” (strength {number(float(side.values[i]))})" for t, i in found
    )


def wanted_words(side: Preference, what: str) -> str:
    """A sentence on the ranks of the wanted tokens; empty where none are known."""
    if not side.wanted:
        return ""
    places = ", ".join(
        f"“{token(t, limit=18)}” {rank}"
        for t, rank in zip(side.wanted[:12], side.wanted_ranks[:12].tolist(), strict=True)
    )
    more = f" and {len(side.wanted) - 12} more" if len(side.wanted) > 12 else ""
    return f"Ranks of {what} among {side.compared:,} tokens: {places}{more}."


def standing_out(item: Lens) -> tuple[np.ndarray, np.ndarray]:
    """Best score over its null of every direction, as read and as written, ``[direction]``."""
    with np.errstate(invalid="ignore"):
        read = np.fmax.reduce(item.listen_scores[..., 0], axis=1) / item.listen_null
        written = np.fmax.reduce(item.write_scores[..., 0], axis=1) / item.write_null
    return read, written


def _directions(item: Lens) -> Figure:
    read, written = standing_out(item)
    best = np.nan_to_num(np.fmax(read, written), nan=-1.0)
    order = np.argsort(-best, kind="stable")[:DIRECTIONS]
    labels = [_name(item, int(i)) for i in order]
    plot = panels(
        ["listens for", "writes"], height=150 + 34 * len(order), horizontal_spacing=0.06,
        shared_yaxes=True,
    )  # fmt: skip
    parts = (
        (read, item.listens, item.listen_scores, item.listen_null),
        (written, item.writes, item.write_scores, item.write_null),
    )
    for column, (ratio, words, scores, null) in enumerate(parts, 1):
        for end, colour, name in ((0, VERMILLION, "end 0"), (1, GREY, "end 1")):
            plot.add_trace(
                go.Scatter(
                    x=single(scores[order, end, 0] / null[order]),
                    y=[i + 0.16 * (2 * end - 1) for i in range(len(order))],
                    mode="markers+text",
                    text=[
                        " " + _tokens(words[i][end]) if scores[i, end, 0] > null[i] else ""
                        for i in order
                    ],
                    textposition="middle right",
                    textfont={"size": 10},
                    marker={"color": colour, "size": 7, "symbol": ["circle", "square"][end]},
                    name=name,
                    legendgroup=name,
                    showlegend=column == 1,
                    hovertext=[_hover(item, int(i), end) for i in order],
                    hoverinfo="text",
                    cliponaxis=False,
                ),
                row=1,
                col=column,
            )
        top = float(np.nanmax(ratio[order], initial=1.0))
        plot.update_xaxes(range=[0, 2.1 * top], row=1, col=column)
        plot.add_vline(1, line={"dash": "dash", "color": MUTED}, row=1, col=column)  # pyright: ignore[reportArgumentType]
    axis = named(labels, limit=40) | {"range": [len(order) - 0.4, -0.6], "automargin": True}
    plot.update_yaxes(**axis)
    plot.update_xaxes(title_text="best token's score / null")
    plot.update_layout(legend={"y": 1.06}, margin={"t": 84})
    return Figure(
        id="lens-directions",
        title="Directions that read or write particular tokens",
        plot=plot,
        caption=_directions_caption(item, len(order), read, written),
        how_to_read=(
            "A point right of the dashed line prefers the tokens beside it more than a random "
            "direction would; what points left of it prefer means little and is in the hover "
            "text alone. Queries, keys and gates write no "
            "token themselves. Writing is followed on the direct path to the logits only, not "
            "through later layers."
        ),
        alt=_alt(item, read, written),
    )


def _directions_caption(item: Lens, shown: int, read: np.ndarray, written: np.ndarray) -> str:
    return (
        f"The {plural(shown, 'direction')} with the highest scores of "
        f"{plural(len(item.modules), 'direction')} examined (by {item.chosen_by}), each "
        "with both ends: what is read at one end is written at the same end. Scores are robust "
        "z-scores among tokens, divided by the 95 % quantile of the best token for random "
        "directions of the same module (dashed: 1). Above it: "
        f"{int((read > 1).sum())} as read, {int((written > 1).sum())} as written of "
        f"{int(np.isfinite(written).sum())} that write. Output projections are read on "
        f"{plural(item.prompts, 'prompt')} ({item.triggered} with the trigger), all others on "
        "the whole vocabulary."
    )


def _name(item: Lens, index: int) -> str:
    layer = int(item.layers[index])
    return f"{layer_name(layer)} {kind_of(item.modules[index])} #{int(item.place[index])}"


def _tokens(words: tuple[str, ...]) -> str:
    return " ".join(f"“{text(word, limit=12)}”" for word in words[:WORDS])


def _hover(item: Lens, index: int, end: int) -> str:
    read = _scored(item.listens[index][end], item.listen_scores[index, end])
    written = _scored(item.writes[index][end], item.write_scores[index, end])
    effect = float(item.effect[index])
    return (
        f"{text(item.modules[index], limit=80)} #{int(item.place[index])}, end {end}"
        f"<br>σ {number(float(item.sigma[index]))}, effect on the target "
        f"{'not known' if np.isnan(effect) else number(effect) + ' nats'}"
        f"<br>listens ({item.read_from[index]}): {read}"
        f"<br>writes: {written or text(item.writes_nothing[index], limit=80)}"
    )


def _scored(words: tuple[str, ...], scores: np.ndarray) -> str:
    return ", ".join(
        f"{text(word, limit=18)} {number(float(score))}"
        for word, score in zip(words, scores, strict=False)
    )


def _alt(item: Lens, read: np.ndarray, written: np.ndarray) -> str:
    parts = []
    for verb, ratio, words, scores in (
        ("reads", read, item.listens, item.listen_scores),
        ("writes", written, item.writes, item.write_scores),
    ):
        if not np.isfinite(ratio).any():
            parts.append(f"no direction {verb} a token")
            continue
        i = int(np.nanargmax(ratio))
        end = int(np.nanargmax(scores[i, :, 0]))
        parts.append(
            f"{_name(item, i)} {verb} “{token(words[i][end][0], limit=18)}” at "
            f"{number(float(ratio[i]))} times its null"
        )
    return "; ".join(parts) + "."
