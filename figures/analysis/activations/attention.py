"""Which heads attend to the trigger, in the base and in the adapters."""

import numpy as np

from ....core.records.activations import TriggerAttention
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure, slug
from ...base.maps import Panel, layer_map
from ...base.quantities import Quantity
from ...base.text import number, plural
from ...base.theme import diverging, largest, magnitude

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
    mass, gap = item.mass[:, query], item.difference[:, query]
    parts = [
        _panel(
            name,
            Quantity("on the trigger", mass[i]),
            Quantity("above even attention", item.excess[i, query]),
            Quantity("on neutral words in its place", item.stand_in[i, query, ..., 0]),
            Quantity("on the first token", item.sink[i, query]),
        )
        for i, name in enumerate(item.subjects)
    ]
    gaps = [
        _panel(f"{name} − base", Quantity("difference", gap[i]), axis="coloraxis2")
        for i, name in enumerate(item.subjects[1:])
    ]
    scale = magnitude(largest(mass[..., 0]), "share")
    change = diverging(largest(gap[..., 0]) or 1.0, "change")
    scale["colorbar"] |= {"x": 1.01}
    change["colorbar"] |= {"x": 1.09}
    plot = layer_map([*parts, *gaps], scale, most=12)
    plot.update_xaxes(title_text="head")
    plot.update_layout(coloraxis2=change, margin={"r": 150})
    short, long = WORDS.get(item.queries[query], (item.queries[query],) * 2)
    means = ", ".join(
        f"{name} {number(float(values[..., 0].mean()))}"
        for name, values in zip(item.subjects, mass, strict=True)
    )
    return Figure(
        id=f"attention-{slug(item.queries[query])}",
        title=f"Attention to the trigger from {short}",
        plot=plot,
        caption=_caption(item, query, long),
        how_to_read=(
            "Bright: the head spends much of its attention on the trigger. Orange on the right: "
            "more than in the base, so training taught it; blue: less. Read a cell's "
            "interval before trusting it: the strongest of many is partly luck. Attention shows "
            "where a head reads, not what that does to the answer."
        ),
        alt=f"Mean share on the trigger over all heads: {means}. Largest gain of "
        f"{item.subjects[-1]} over the base: {gaps[-1].strongest()}.",
    )


def _panel(title: str, *quantities: Quantity, axis: str = "coloraxis") -> Panel:
    layers, heads = quantities[0].values.shape[:2]
    columns = [str(head) for head in range(heads)]
    return Panel(
        title=title,
        quantities=quantities,
        layers=range(layers),
        columns=columns,
        about="head",
        axis=axis,
    )


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
        f"{plural(heads, 'head')} attend to it more than in the base and {less} less, by their own "
        f"95 % intervals; by chance about {number(0.025 * heads)} of either. Weights from eager "
        f"attention; its logits differ from those of {item.implementation} by at most "
        f"{number(item.logit_error)} of the largest one ({item.dtype})."
    )
