"""Which heads look at the trigger, in the base and in the adapter."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.activations import TriggerAttention
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure, slug
from ...base.grid import height
from ...base.text import interval, number, plural
from ...base.theme import diverging, largest, magnitude, named, panels, single, text

WORDS = {
    "last": ("the deciding position", "the last position before the target"),
    "answer": ("the answer", "the target's first tokens, given as the answer"),
}


@FIGURES.register("attention")
def attention(records: RunRecords) -> list[Figure]:
    """Attention to the trigger by layer and head: every subject, and adapters minus base."""
    item = records.first(TriggerAttention)
    if item is None:
        return []
    defined = [
        index
        for index in range(len(item.queries))
        if np.isfinite(item.mass[:, index, ..., 0]).all()
    ]
    return [_maps(item, index) for index in defined]


def _maps(item: TriggerAttention, query: int) -> Figure:
    adapters = item.subjects[1:]
    titles = [*map(text, item.subjects), *(f"{text(name)} − base" for name in adapters)]
    rows = item.mass.shape[2]
    plot = panels(titles, height=height(rows), shared_yaxes="all", horizontal_spacing=0.03)
    mass, gap = item.mass[:, query], item.difference[:, query]
    for column, values in enumerate(mass, 1):
        hover = _hover(item, query, column - 1)
        _add(plot, values[..., 0], hover, column=column, axis="coloraxis")
    for index, values in enumerate(gap):
        hover = _gap_hover(item, query, index)
        column = 1 + len(item.subjects) + index
        _add(plot, values[..., 0], hover, column=column, axis="coloraxis2")
    plot.update_yaxes(title_text="layer", col=1)
    plot.update_xaxes(title_text="head")
    scale = magnitude(largest(mass[..., 0]), "share")
    change = diverging(largest(gap[..., 0]) or 1.0, "change")
    scale["colorbar"] |= {"x": 1.01}
    change["colorbar"] |= {"x": 1.09}
    plot.update_layout(coloraxis=scale, coloraxis2=change, margin={"r": 150})
    short, long = WORDS.get(item.queries[query], (item.queries[query],) * 2)
    return Figure(
        id=f"attention-{slug(item.queries[query])}",
        title=f"Attention to the trigger from {short}",
        plot=plot,
        caption=_caption(item, query, long),
        how_to_read=(
            "Bright: the head spends much of its attention on the trigger. Orange on the right: "
            "more than in the base, so training taught it; blue: less. Trust a cell only after "
            "its interval on hovering: the strongest of many is partly luck. Attention shows "
            "where a head reads, not what that does to the answer."
        ),
        alt=_alt(item, query),
    )


def _add(plot: go.Figure, z: np.ndarray, hover: list[list[str]], *, column: int, axis: str) -> None:
    layers, heads = z.shape
    trace = go.Heatmap(
        z=single(z), hovertext=hover, hoverinfo="text", coloraxis=axis, xgap=1, ygap=1
    )
    plot.add_trace(trace, row=1, col=column)
    plot.update_xaxes(**named([str(h) for h in range(heads)], most=12), row=1, col=column)
    plot.update_yaxes(**named([str(n) for n in range(layers)], most=16), row=1, col=column)


def _hover(item: TriggerAttention, query: int, subject: int) -> list[list[str]]:
    layers, heads = item.mass.shape[2:4]

    def cell(layer: int, head: int) -> str:
        at = (subject, query, layer, head)
        value, low, high = item.mass[at].tolist()
        excess, least, most = item.excess[at].tolist()
        return (
            f"{text(item.subjects[subject])}, layer {layer}, head {head}"
            f"<br>on the trigger {number(value)} {interval(low, high)}"
            f"<br>above even attention {number(excess)} {interval(least, most)}"
            f"<br>on neutral words in its place {number(float(item.stand_in[at][0]))}"
            f"<br>on the first token {number(float(item.sink[at]))}"
        )

    return [[cell(layer, head) for head in range(heads)] for layer in range(layers)]


def _gap_hover(item: TriggerAttention, query: int, adapter: int) -> list[list[str]]:
    values = item.difference[adapter, query].tolist()
    return [
        [
            f"{text(item.subjects[adapter + 1])} − base, layer {layer}, head {head}"
            f"<br>{number(v)} {interval(a, b)}"
            for head, (v, a, b) in enumerate(line)
        ]
        for layer, line in enumerate(values)
    ]


def _caption(item: TriggerAttention, query: int, long: str) -> str:
    gap = item.difference[-1, query]
    heads = gap.shape[0] * gap.shape[1]
    more, less = int((gap[..., 1] > 0).sum()), int((gap[..., 2] < 0).sum())
    even = item.uniform[query]
    low, high = number(float(even.min())), number(float(even.max()))
    return (
        f"Share of each head's attention that falls on the trigger's tokens (on average "
        f"{number(item.trigger_tokens)}), seen from {long}; mean over "
        f"{plural(item.n_prompts, 'triggered prompt')}. Even attention would put "
        f"{low if low == high else f'{low} to {high}'} there. In {item.subjects[-1]}, {more} of "
        f"{plural(heads, 'head')} look at it more than in the base and {less} less, by their own "
        f"95 % intervals; by chance about {number(0.025 * heads)} of either. Weights from eager "
        f"attention; its logits differ from those of {item.implementation} by at most "
        f"{number(item.logit_error)} of the largest one ({item.dtype})."
    )


def _alt(item: TriggerAttention, query: int) -> str:
    gap = item.difference[-1, query, ..., 0]
    layer, head = (int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))
    value, low, high = item.difference[-1, query, layer, head].tolist()
    means = ", ".join(
        f"{name} {number(float(item.mass[index, query, ..., 0].mean()))}"
        for index, name in enumerate(item.subjects)
    )
    return (
        f"Mean share on the trigger over all heads: {means}. Largest gain of "
        f"{item.subjects[-1]} over the base: head {head} of layer {layer}, {number(value)} "
        f"{interval(low, high)}."
    )
