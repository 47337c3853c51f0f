"""One figure per file, the theme and the report; reads records, never a model."""

# Imported in the order of the report: registering is what these imports are for.
from .unlearning import curves  # isort: skip # noqa: F401
from .analysis import patching, screening, spectra, difference  # isort: skip # noqa: F401
from .analysis import matching, intruders, where, votes  # isort: skip # noqa: F401
from .analysis import probes, consistency, attention  # isort: skip # noqa: F401
from .analysis import effectiveness  # isort: skip # noqa: F401
from .analysis import neurons  # isort: skip # noqa: F401
from .analysis import lens, logit_lens  # isort: skip # noqa: F401
from .analysis import candidates  # isort: skip # noqa: F401
from .unlearning import cut, stability, tradeoff  # isort: skip # noqa: F401
from .base.export import Exported, check_page, write_figures, write_page
from .base.figure import FIGURES, Figure, draw
from .report.findings import Finding, findings
from .report.report import report_html

__all__ = [
    "FIGURES",
    "Exported",
    "Figure",
    "Finding",
    "check_page",
    "draw",
    "findings",
    "report_html",
    "write_figures",
    "write_page",
]
