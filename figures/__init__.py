"""One figure per file, the theme and the report; reads records, never a model."""

from .analysis import (  # noqa: F401  (they register)
    attention,
    candidates,
    consistency,
    difference,
    effectiveness,
    intruders,
    lens,
    logit_lens,
    matching,
    neurons,
    patching,
    probes,
    screening,
    spectra,
    votes,
    where,
)
from .base.export import Exported, check_page, write_figures, write_page
from .base.figure import FIGURES, Figure, draw, draw_record
from .report.findings import Finding, findings
from .report.report import report_html
from .unlearning import curves, cut, stability, tradeoff  # noqa: F401

__all__ = [
    "FIGURES",
    "Exported",
    "Figure",
    "Finding",
    "check_page",
    "draw",
    "draw_record",
    "findings",
    "report_html",
    "write_figures",
    "write_page",
]

FIGURES.arrange(
    *("curves", "patching", "screening", "spectra", "difference", "matching", "intruders"),
    *("where", "votes", "probes", "consistency", "attention", "effectiveness", "neurons"),
    *("lens", "logit_lens", "candidates", "cut", "stability", "tradeoff"),
)
"""The order of the report."""
