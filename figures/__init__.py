"""One figure per file, the theme and the report; reads records, never a model."""

# The modules of figures register themselves when they are imported.
from .analysis.activations import attention, consistency, probes  # noqa: F401
from .analysis.lens import lens, logit_lens  # noqa: F401
from .analysis.localisation import vector, votes, where  # noqa: F401
from .analysis.neurons import neurons  # noqa: F401
from .analysis.patching import effectiveness, patching, screening  # noqa: F401
from .analysis.triggers import candidates  # noqa: F401
from .analysis.weights import difference, intruders, matching, spectra  # noqa: F401
from .base.export import Exported, check_page, write_figures, write_page
from .base.figure import FIGURES, Figure, draw, draw_record, draw_sections
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
    "draw_sections",
    "findings",
    "report_html",
    "write_figures",
    "write_page",
]

FIGURES.arrange(
    *("curves", "patching", "screening", "spectra", "difference", "matching", "intruders"),
    *("where", "votes", "probes", "consistency", "attention", "effectiveness", "vector"),
    *("neurons", "lens", "logit_lens", "candidates", "cut", "stability", "tradeoff"),
)
"""The order of the report."""
