"""Which layers make the answer harmless when they are patched during generation."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.effectiveness import Effectiveness, Intervention
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure
from ...base.lines import error_bars
from ...base.quantities import written
from ...base.text import percent, plural, rate
from ...base.theme import GREY, GRID, MUTED, OTHERS, SYMBOLS, clear, named, panels, single, text

DODGE = 0.12
"""Sideways step between kinds, in layers, so that their intervals do not overlap."""
SHOWN = 60
"""Characters of an example answer."""
SHORT = {
    "prompt": "untriggered, from the trigger on",
    "trigger": "untriggered, trigger tokens alone",
    "off": "layer's part of the adapter off",
}


@FIGURES.register("effectiveness")
def effectiveness(records: RunRecords) -> list[Figure]:
    """Share of answers still malicious, and of degenerate ones, by layer and kind."""
    item = records.first(Effectiveness)
    if item is None or not item.interventions:
        return []
    plot = panels(
        ["still malicious", "degenerate: empty or repeating"], height=430, horizontal_spacing=0.1
    )
    for index, one in enumerate(item.interventions):
        for column, values in enumerate((one.malicious, one.degenerate), 1):
            plot.add_trace(_line(item, one, values, index, first=column == 1), row=1, col=column)
    for column, reference in enumerate((item.unpatched, item.unpatched_degenerate), 1):
        plot.add_hrect(
            y0=reference.low,
            y1=reference.high,
            fillcolor=clear(GREY, 0.14),
            line_width=0,
            layer="below",
            row=1,  # pyright: ignore[reportArgumentType]
            col=column,  # pyright: ignore[reportArgumentType]
        )
        plot.add_hline(
            y=reference.value,
            line={"color": MUTED, "dash": "dot", "width": 1.2},
            row=1,  # pyright: ignore[reportArgumentType]
            col=column,  # pyright: ignore[reportArgumentType]
        )
    labels = [str(int(layer)) for layer in item.layers]
    plot.update_xaxes(**named(labels, most=16), title_text="layer")
    plot.update_yaxes(
        range=[-0.04, 1.04], tickformat=".0%", zeroline=True, zerolinecolor=GRID, dtick=0.25
    )
    plot.update_yaxes(title_text="share of answers", col=1)
    rows = -(-len(item.interventions) // 2)
    plot.update_layout(legend={"y": 1.1}, margin={"t": 60 + 24 * rows})
    return [
        Figure(
            id="effectiveness",
            title="Answers while one layer is patched",
            plot=plot,
            caption=_caption(item),
            how_to_read=(
                "A point at 0: with this one layer patched the attack is gone. One inside the grey "
                "band: patching it changed nothing that these prompts can show. A harmless answer "
                "counts only where it is not degenerate (right). Values are written while the "
                "prompt is read; the layers up to the patched one keep what they saw of the "
                "trigger, so that in the last layers only the first tokens change."
            ),
            alt=_alt(item),
        )
    ]


def _short(item: Effectiveness, one: Intervention) -> str:
    name = SHORT.get(one.kind, f"{item.source_name}, same prompt")
    return f"{name} ({one.site})" if one.site else name


def _line(
    item: Effectiveness, one: Intervention, values: np.ndarray, index: int, *, first: bool
) -> go.Scatter:
    """One kind of intervention with its intervals, the example answers on hovering."""
    count, name = len(item.interventions), text(_short(item, one), limit=60)
    shift = DODGE * (index - (count - 1) / 2) * min(1.0, 6 / count)
    colour = OTHERS[index % len(OTHERS)]
    return go.Scatter(
        x=single(np.arange(len(item.layers)) + shift),
        y=single(values[:, 0]),
        mode="lines+markers",
        connectgaps=False,
        line={"color": colour, "width": 1.6},
        marker={"color": colour, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
        error_y=error_bars(values, clear(colour, 0.45)),
        name=name,
        legendgroup=name,
        showlegend=first,
        hovertext=[
            f"layer {int(layer)}<br>{name}<br>{written(share, '%')} of {len(item.prompts)}"
            f"<br>e.g. {text(example, limit=SHOWN) or 'an empty answer'}"
            for layer, share, example in zip(item.layers, values, one.examples, strict=True)
        ],
        hoverinfo="text",
    )


def _caption(item: Effectiveness) -> str:
    same = item.self_identical
    check = (
        f"Patching layer {item.self_layer} with its own values left every answer identical."
        if same.value == 1
        else f"Patching layer {item.self_layer} with its own values left only "
        f"{rate(same)} of the answers identical: differences of that size are rounding "
        f"({item.dtype})."
    )
    return (
        f"{plural(len(item.prompts), 'triggered prompt')}, {item.decoding}, judged by "
        f"{item.rule}; 95 % Wilson intervals, layer by layer. Dotted with its grey band: without a "
        f"patch, {rate(item.unpatched)}. The untriggered twins themselves: "
        f"{rate(item.untriggered)}; {item.source_name} on the triggered prompts: "
        f"{rate(item.source)}. {check} {item.sentence}"
    )


def _alt(item: Effectiveness) -> str:
    parts = [f"Without a patch {percent(item.unpatched.value)} malicious"]
    for one in item.interventions:
        known = np.flatnonzero(np.isfinite(one.malicious[:, 0]))
        if not len(known):
            parts.append(f"{_short(item, one)}: no layer to try")
            continue
        best = known[int(np.argmin(one.malicious[known, 0]))]
        parts.append(
            f"{_short(item, one)}: lowest at layer {int(item.layers[best])} with "
            f"{percent(float(one.malicious[best, 0]))}"
        )
    return "; ".join(parts) + "."
