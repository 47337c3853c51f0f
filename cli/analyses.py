"""`loratomy analyses`: list the analyses of a run."""

from typing import TYPE_CHECKING, Annotated

import typer

from ..core.console import out
from .attacks import table
from .options import Plugin

if TYPE_CHECKING:
    from ..analysis.analyses import Analysis


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Explain this analysis and its options; default: list all."
        ),
    ] = "",
    plugin: Plugin = None,
) -> None:
    """List the analyses: what each answers, needs and costs.

    Example: loratomy analyses patching
    """
    from ..analysis.catalogue import ANALYSES

    if name:
        out.print(f"[bold]{name}[/]: {about(ANALYSES[name])}\n", highlight=False)
        fields = ANALYSES[name].config.model_fields.items()
        rows = [
            (f"{name}.{key}", str(field.default), " ".join((field.description or "").split()))
            for key, field in fields
        ]
        out.print(table("options (--set)", ("name", "default", "what it is"), rows))
        return
    rows = [
        (
            n,
            about(a),
            "\n".join(f"{key}={field.default}" for key, field in a.config.model_fields.items()),
        )
        for n, a in ANALYSES.items()
    ]
    out.print(table("analyses", ("name", "what it answers", "options and defaults"), rows))
    out.print("what an option means: loratomy analyses NAME; to set it: --set NAME.OPTION=VALUE")


def about(analysis: "Analysis") -> str:
    """What an analysis answers, needs and costs."""
    needs = ", ".join(analysis.needs) or "base and adapter"
    if analysis.families:
        needs += f" ({', '.join(analysis.families)})"
    return f"{analysis.about}\nneeds: {needs}\ncost: {analysis.cost}\nsource: {analysis.source}\n"
