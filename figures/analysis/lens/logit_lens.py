"""How likely the target is after each layer, base beside adapter."""

import numpy as np

from ....core.records.lens import LogitLens
from ....core.records.results import RunRecords
from ...base.figure import FIGURES, Figure
from ...base.lines import layer_lines, line_panels
from ...base.maps import Panel, layer_map
from ...base.quantities import Quantity
from ...base.text import number, plural, token
from ...base.theme import looks, magnitude

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
    plot = line_panels(
        [""], "after layer", "log-probability of the target's first token (nats)", height=360
    )
    colours = looks(records)
    for subject, values in zip(item.subjects, item.decided_log_prob, strict=True):
        layer_lines(
            plot,
            Quantity("log-probability", values, "nats"),
            places="after layer",
            name=subject,
            look=colours[subject],
        )
    plot.update_xaxes(dtick=max(1, -(-item.decided_log_prob.shape[1] // 16)))
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
    parts = [_panel(item, subject) for subject in range(len(item.subjects))]
    low = min(float(np.nanmin(item.mean[..., 0])), -1e-6)
    scale = magnitude(0, "log-probability") | {"cmin": low, "cmax": 0}
    plot = layer_map(parts, scale, rotated=True)
    plot.update_yaxes(title_text="after layer", row=1, col=1)
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
            "Bright: the layer's output already predicts the target. Compare a cell with the same "
            "cell of the base: what is bright in both does not come from the adapter. " + EARLY
        ),
        alt=f"{parts[-1].title}: highest log-probability, after {parts[-1].strongest()}.",
    )


def _panel(item: LogitLens, subject: int) -> Panel:
    often = [
        [
            f"{token(name)} on {count} of {plural(int(n), 'prompt')}"
            for name, count, n in zip(*line, item.column_prompts, strict=True)
        ]
        for line in zip(item.top[subject], item.top_count[subject], strict=True)
    ]
    return Panel(
        title=item.subjects[subject],
        quantities=[
            Quantity("log-probability", item.mean[subject], "nats"),
            Quantity("median rank", item.rank[subject]),
            Quantity("most often likeliest:", np.array(often)),
        ],
        layers=range(item.mean.shape[1]),
        columns=item.columns,
        roles=item.column_roles,
    )
