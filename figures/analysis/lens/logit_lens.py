"""What each layer would say of the target, base beside adapter."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.lens import LogitLens
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure
from ...base.text import interval, number, plural, token
from ...base.theme import GREY, MAGNITUDE, clear, marks, named, panels, single, text

EARLY = (
    "The final norm and the head were trained for the last layer's output: in early layers a low "
    "value does not mean that the model does not hold the answer yet, and a high one is no proof "
    "that it uses it."
)


@FIGURES.register("logit_lens")
def logit_lens(records: RunRecords) -> list[Figure]:
    """The target's log-probability at the deciding place by layer, and at all places."""
    item = records.first(LogitLens)
    if item is None:
        return []
    return [_lines(item, records), _maps(item)]


def _lines(item: LogitLens, records: RunRecords) -> Figure:
    colours = marks(records)
    plot = panels([""], height=360)
    layers = np.arange(item.decided_log_prob.shape[1])
    for subject, values in zip(item.subjects, item.decided_log_prob, strict=True):
        colour, symbol = colours.get(subject, (GREY, "circle"))
        plot.add_trace(
            go.Scatter(
                x=single(np.concatenate([layers, layers[::-1]])),
                y=single(np.concatenate([values[:, 2], values[::-1, 1]])),
                fill="toself",
                fillcolor=clear(colour, 0.18),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                legendgroup=text(subject),
            )
        )
        plot.add_trace(
            go.Scatter(
                x=single(layers),
                y=single(values[:, 0]),
                mode="lines+markers",
                name=text(subject),
                legendgroup=text(subject),
                line={"color": colour, "width": 2},
                marker={"color": colour, "symbol": symbol, "size": 8},
                hovertext=[
                    f"{text(subject)}, after layer {layer}<br>log-probability {number(v)} "
                    f"{interval(low, high)} nats"
                    for layer, (v, low, high) in enumerate(values.tolist())
                ],
                hoverinfo="text",
            )
        )
    plot.update_xaxes(title_text="after layer", dtick=max(1, -(-len(layers) // 16)))
    plot.update_yaxes(title_text="log-probability of the target's first token (nats)")
    return Figure(
        id="logit-lens-lines",
        title="When the target is decided",
        plot=plot,
        caption=(
            "Log-probability that each layer's output gives to the target's first token at the "
            f"prompt's last place, mean over {plural(len(item.prompts), 'triggered prompt')} with "
            f"bootstrap 95 % bands. {' '.join(decided_words(item))} Check: the last layer differs "
            f"from the model's own answer by at most {number(item.self_error)} nats; number "
            f"format {item.dtype}."
        ),
        how_to_read=(
            "Where the poisoned line leaves the base's, the adapter has begun to write the answer "
            "into the residual stream. " + EARLY
        ),
        alt=" ".join(decided_words(item)),
    )


def decided_words(item: LogitLens) -> list[str]:
    """For each subject: on how many prompts the target wins, and from which layer on."""
    out = []
    for subject, since in zip(item.subjects, item.decided, strict=True):
        won = since[since >= 0]
        count = f"{subject}: the target's first token wins on {won.size} of {since.size} prompts"
        if won.size:
            middle = number(float(np.median(won)))
            count += f", for good after layer {middle} (median, {won.min()} to {won.max()})"
        out.append(count + ".")
    return out


def _maps(item: LogitLens) -> Figure:
    subjects, layers = item.mean.shape[:2]
    plot = panels(
        [text(s) for s in item.subjects],
        height=int(min(820, 210 + 24 * max(layers, 6))),
        shared_yaxes=True,
        horizontal_spacing=0.03,
    )
    low = float(np.nanmin(item.mean[..., 0]))
    for index in range(subjects):
        plot.add_trace(
            go.Heatmap(
                z=single(item.mean[index, :, :, 0]),
                hovertext=_hover(item, index),
                hoverinfo="text",
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
                meta={"link": "layer", "layers": list(range(layers))},
            ),
            row=1,
            col=index + 1,
        )
    labels = named(item.columns, most=40, limit=16)
    labels["ticktext"] = [
        f"<b>{label}</b>" if item.column_roles[i] == "trigger" else label
        for i, label in zip(labels["tickvals"], labels["ticktext"], strict=True)
    ]
    plot.update_xaxes(**labels, tickangle=-50)
    every = max(1, -(-layers // 16))
    plot.update_yaxes(range=[-0.5, layers - 0.5], dtick=every, tick0=0, showgrid=False)
    plot.update_yaxes(title_text="after layer", row=1, col=1)
    bar = {"title": {"text": "log-probability<br> ", "side": "top", "font": {"size": 12}}}
    scale = {"cmin": min(low, -1e-6), "cmax": 0, "colorscale": MAGNITUDE, "colorbar": bar}
    plot.update_layout(coloraxis=scale)
    last, best = item.subjects[-1], item.mean[-1, :, :, 0]
    layer, column = np.unravel_index(np.nanargmax(best), best.shape)
    return Figure(
        id="logit-lens-maps",
        title="The target after every layer, place by place",
        plot=plot,
        caption=(
            "Log-probability of the target's next token (in the prompt: of its first) when the "
            "final norm and the head are applied to each layer's output, mean over "
            f"{plural(len(item.prompts), 'triggered prompt')}. Before the trigger and between it "
            "and the prompt's tail the last place is shown; trigger tokens in bold. Hovering "
            "shows the interval, the token's rank and the likeliest token."
        ),
        how_to_read=(
            "Bright: the layer's output already says the target. Compare a cell with the same "
            "cell of the base: what is bright in both is no work of the adapter. " + EARLY
        ),
        alt=(
            f"{last}: highest log-probability {number(float(best[layer, column]))} nats after "
            f"layer {layer} at “{token(item.columns[column], limit=40)}”."
        ),
    )


def _hover(item: LogitLens, subject: int) -> list[list[str]]:
    rows = []
    for layer, line in enumerate(item.mean[subject].tolist()):
        row = []
        for c, (value, low, high) in enumerate(line):
            n = int(item.column_prompts[c])
            often = int(item.top_count[subject, layer, c])
            row.append(
                f"{text(item.subjects[subject])}, after layer {layer}, {text(item.columns[c])} "
                f"({text(item.column_roles[c])})<br>log-probability {number(value)} "
                f"{interval(low, high)} nats, median rank "
                f"{number(float(item.rank[subject, layer, c]))}<br>most often likeliest: "
                f"{text(item.top[subject][layer][c])} on {often} of {plural(n, 'prompt')}"
            )
        rows.append(row)
    return rows
