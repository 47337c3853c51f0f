"""`loratomy report`: one HTML file that explains the run; reads records, never a model."""

from pathlib import Path
from typing import Annotated

import typer

from ..core.console import say
from ..core.records.goals import Goals
from ..study import load
from ..verbs.reporting import report
from .options import Plugin


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    formats: Annotated[
        str,
        typer.Option(help="Formats of the separate figures, comma-separated: html, png, pdf, svg."),
    ] = "html",
    out: Annotated[
        Path | None, typer.Option(help="Write the report here instead of RUN/report.html.")
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Replace the file at --out even if loratomy did not write it."
        ),
    ] = False,
    asr_goal: Annotated[
        float | None,
        typer.Option(help="Judge operations by this highest upper 95 % bound of ASR, e.g. 0.05."),
    ] = None,
    perplexity_goal: Annotated[
        float | None,
        typer.Option(help="Judge operations by this highest rise of perplexity, e.g. 0.01."),
    ] = None,
    kl_goal: Annotated[
        float | None,
        typer.Option(
            help="Judge operations by this highest KL divergence from the poisoned adapter on its "
            "own answers to clean prompts, nats per token, e.g. 0.05."
        ),
    ] = None,
    plugin: Plugin = None,
) -> None:
    """Write the results of a run as one HTML file with figures.

    report.html is self-contained and opens offline; figures/ holds each figure by itself. Only what
    has been computed is shown: run probe, operate and compare first for a full report.

    Example: loratomy report runs/demo --formats html,png,svg
    """
    kinds = [f.strip() for f in formats.split(",") if f.strip()]
    goals = Goals(asr=asr_goal, perplexity=perplexity_goal, kl=kl_goal)
    path = report(load(run), formats=kinds, out=out, fresh=fresh, goals=goals)
    say(f"done: {path}")
