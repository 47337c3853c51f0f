"""How the adapters were learned: loss, attack success and clean accuracy along training."""

from ...core.records.results import Curves, RunRecords
from ..base.figure import FIGURES, Figure
from ..base.lines import layer_lines, line_panels
from ..base.quantities import Quantity
from ..base.text import number, percent, plural
from ..base.theme import looks


@FIGURES.register("curves")
def curves(records: RunRecords) -> list[Figure]:
    """Training curves of the clean and the poisoned adapter on common axes."""
    runs = [run for run in records.curves if len(run.step) or len(run.eval_step)]
    if not runs:
        return []
    plot = line_panels(
        ("Training loss", "Attack success rate (ASR)", "Clean accuracy"),
        "optimiser step",
        "nats per completion token",
        shared_yaxes=False,
        horizontal_spacing=0.08,
    )
    colours = looks(records)
    for run in runs:
        look = (colours[run.name][0], "circle")
        loss = Quantity("loss", run.loss)
        asr = Quantity("ASR", run.asr, "%", run.asr_n)
        accuracy = Quantity("clean accuracy", run.clean_accuracy, "%", run.clean_accuracy_n)
        for column, x, values in (
            (1, run.step, loss), (2, run.eval_step, asr), (3, run.eval_step, accuracy)
        ):  # fmt: skip
            layer_lines(
                plot,
                values,
                x=x,
                places="step",
                name=run.name,
                look=look,
                mode="lines" if column == 1 else "lines+markers",
                col=column,
            )
    plot.update_xaxes(rangemode="tozero")
    plot.update_yaxes(rangemode="tozero", row=1, col=1)
    for column in (2, 3):
        plot.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", dtick=0.25, row=1, col=column)
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
