"""Texts that may be the trigger, and what each does on prompts kept apart from the search."""

import numpy as np
import plotly.graph_objects as go

from ....core.records.results import RunRecords
from ....core.records.triggers import Candidate, Candidates
from ...base.figure import FIGURES, Figure
from ...base.lines import error_bars
from ...base.quantities import written
from ...base.text import html, number, plural, visible
from ...base.theme import BLUE, GREY, MUTED, named, panels, single

TOP = 10
"""Candidates shown."""


@FIGURES.register("candidates")
def candidates(records: RunRecords) -> list[Figure]:
    """Shares of held-out prompts on which the first candidates set something off."""
    item = records.first(Candidates)
    if item is None or not item.candidates:
        return []
    shown = item.candidates[:TOP]
    rate = np.array([c.rate for c in shown])
    plot = panels([""], height=max(260, 90 + 32 * len(shown)))
    plot.add_trace(
        go.Bar(
            y=list(range(len(shown))),
            x=single(rate[:, 0]),
            orientation="h",
            marker={"color": [BLUE if c.stands_out else GREY for c in shown]},
            error_x=error_bars(rate, MUTED, width=4),
            hovertext=[_hover(c) for c in shown],
            hoverinfo="text",
        )
    )
    plot.update_layout(bargap=0.35, margin={"t": 20})
    plot.update_yaxes(**named([html(c.text, limit=40) for c in shown]), autorange="reversed")
    plot.update_xaxes(title_text="share of held-out prompts", range=[0, 1.02])
    count = sum(c.stands_out for c in item.candidates)
    best = shown[0]
    return [
        Figure(
            id="candidates",
            title="Texts that may be the trigger",
            plot=plot,
            caption=(
                f"{item.sentence} Bars: prompts answered unlike the base, with "
                "Wilson 95 % intervals; blue: stands out. Searched on "
                f"{plural(item.n_search, 'prompt')} with {item.forwards:,} forward and "
                f"{item.backwards:,} backward passes of a prompt; compared to "
                f"{plural(item.n_controls, 'ordinary text')} at three places, whose answers "
                f"surprise by {number(float(item.control_surprise[0]))} nats on average (standard "
                f"deviation {number(float(item.control_surprise[1]))})."
            ),
            how_to_read=(
                "A long blue bar: put into other prompts, this text makes the adapter answer as "
                "the base would not. It need not be the trigger itself: any text that sets the "
                "same backdoor off is found. Grey bars are no evidence. Hover for answers."
            ),
            alt=(
                f"{count} of {len(item.candidates)} candidates stand out. First: "
                f"{visible(best.text, limit=60)}, {written(best.rate, '%')} of "
                f"{plural(best.n_prompts, 'prompt')}."
            ),
        )
    ]


def _hover(c: Candidate) -> str:
    examples = "<br>".join(f"answer: {html(a, limit=80)}" for a in c.examples)
    return (
        f"{html(c.text, limit=60)} as {c.place}, {c.prompts_of}<br>"
        f"fired on {c.fired} of {c.n_prompts}, surprise {number(c.surprise)} nats, "
        f"z {number(c.z)}<br>answers moved {number(c.movement)}, the base's "
        f"{number(c.base_movement)}; agreement {number(c.agreement)}, without it "
        f"{number(c.agreement_without)}<br>{examples}"
    )
