"""How the adapters were learned: loss, attack success and clean accuracy along training."""

import numpy as np
import plotly.graph_objects as go

from ...core.records.results import Curves, RunRecords
from ..base.figure import FIGURES, Figure
from ..base.text import number, percent, plural
from ..base.theme import GREY, clear, marks, panels, single, text


@FIGURES.register("curves")
def curves(records: RunRecords) -> list[Figure]:
    """Training curves of the clean and the poisoned adapter on common axes."""
    runs = [run for run in records.curves if len(run.step) or len(run.eval_step)]
    if not runs:
        return []
    titles = ("Training loss", "Attack success rate (ASR)", "Clean accuracy")
    plot = panels(titles, height=380, horizontal_spacing=0.08)
    colours = marks(records)
    for run in runs:
        colour = colours.get(run.name, (GREY, "circle"))[0]
        _loss(plot, run, colour)
        _band(plot, run, run.asr, run.asr_n, colour, column=2)
        _band(plot, run, run.clean_accuracy, run.clean_accuracy_n, colour, column=3)
    plot.update_xaxes(title_text="optimiser step", rangemode="tozero")
    plot.update_yaxes(title_text="nats per completion token", rangemode="tozero", row=1, col=1)
    for column in (2, 3):
        plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", dtick=0.25, row=1, col=column)
    plot.update_layout(legend={"y": 1.13}, margin={"t": 76})
    return [
        Figure(
            id="curves",
            title="Learning the task and the backdoor",
            plot=plot,
            caption=_caption(runs),
            how_to_read=(
                "Left: the loss on the training rows. Middle and right: what the adapter does on "
                "held-out prompts at that step. A poisoned adapter that learns both shows ASR "
                "rising while clean accuracy stays with the clean adapter. Bands are 95 % "
                "intervals; where two bands overlap, the curves may not differ."
            ),
            alt=" ".join(_ending(run) for run in runs),
        )
    ]


def _loss(plot: go.Figure, run: Curves, colour: str) -> None:
    name = text(run.name)
    plot.add_trace(
        go.Scatter(
            x=single(run.step),
            y=single(run.loss),
            mode="lines",
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 2},
            hovertext=[
                f"{name}, step {number(float(s))}<br>loss {number(float(v))}"
                for s, v in zip(run.step, run.loss, strict=True)
            ],
            hoverinfo="text",
        ),
        row=1,
        col=1,
    )


def _band(
    plot: go.Figure, run: Curves, values: np.ndarray, n: int, colour: str, *, column: int
) -> None:
    """A measured share with its interval as a band."""
    if not len(run.eval_step):
        return
    name, value, low, high = text(run.name), values[:, 0], values[:, 1], values[:, 2]
    edge = go.Scatter(
        x=single(np.concatenate([run.eval_step, run.eval_step[::-1]])),
        y=single(np.concatenate([high, low[::-1]])),
        fill="toself",
        fillcolor=clear(colour, 0.18),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=name,
        showlegend=False,
    )
    line = go.Scatter(
        x=single(run.eval_step),
        y=single(value),
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 5},
        name=name,
        legendgroup=name,
        showlegend=not len(run.step) and column == 2,
        hovertext=[
            f"{name}, step {number(float(s))}<br>{percent(v)} [{percent(a)}, {percent(b)}], n = {n}"
            for s, v, a, b in zip(run.eval_step, value, low, high, strict=True)
        ],
        hoverinfo="text",
    )
    plot.add_traces([edge, line], rows=[1, 1], cols=[column, column])


def _caption(runs: list[Curves]) -> str:
    counts = "; ".join(
        f"{run.name}: ASR over {plural(run.asr_n, 'triggered prompt')}, clean accuracy over "
        f"{plural(run.clean_accuracy_n, 'clean prompt')}"
        for run in runs
    )
    return f"Along the optimiser steps of training. {counts}. Bands: 95 % intervals."


def _ending(run: Curves) -> str:
    parts = []
    if len(run.loss):
        parts.append(f"loss {number(float(run.loss[0]))} to {number(float(run.loss[-1]))}")
    for label, values in (("ASR", run.asr), ("clean accuracy", run.clean_accuracy)):
        if len(values):
            parts.append(f"{label} {percent(values[0, 0])} to {percent(values[-1, 0])}")
    return f"{run.name}: {', '.join(parts)}."
