"""`loratomy analyses`: what can be asked of a run."""

from .attacks import table
from .console import out


def command() -> None:
    """List the analyses with what each answers, needs and costs, and its options.

    Example: loratomy probe runs/demo --only patching --set patching.metric=kl
    """
    from ..analysis.catalogue import ANALYSES

    rows = []
    for name, analysis in ANALYSES.items():
        options = [
            f"{name}.{key}={'' if field.is_required() else field.default}"
            for key, field in analysis.config.model_fields.items()
        ]
        needs = ", ".join(analysis.needs) or "base and adapter"
        rows.append(
            (
                name,
                f"{analysis.about}\nneeds: {needs}"
                + (f" ({', '.join(analysis.families)})" if analysis.families else "")
                + f"\ncost: {analysis.cost}\nsource: {analysis.source}\n",
                "\n".join(options),
            )
        )
    out.print(table("analyses", ("name", "what it answers", "options (--set, defaults)"), rows))
