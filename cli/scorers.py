"""`loratomy scorers`: how an answer can be judged."""

from ..core.console import out
from .attacks import table
from .options import Plugin


def command(
    plugin: Plugin = None,
) -> None:
    """List the scorers that success rules are made of.

    A rule combines scorers by name with and, or, not, brackets and thresholds.

    \b
    Example:
      loratomy evaluate runs/demo --scorers "similar,not refusal and cosine >= 0.7"
    """
    from ..evaluation.scorers import SCORERS

    rows = [
        (
            name,
            s.about,
            "against --threshold" if s.graded else "yes or no",
            s.source,
        )
        for name, s in SCORERS.items()
    ]
    out.print(table("scorers", ("name", "what it measures", "kind", "source"), rows))
