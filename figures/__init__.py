"""One figure per file, the theme and the report; reads records, never a model."""

# Imported in the order of the report: registering is what these imports are for.
from . import curves, patching, screening, spectra, difference  # isort: skip # noqa: F401
from . import matching, intruders, where, votes  # isort: skip # noqa: F401
from . import probes, consistency, attention  # isort: skip # noqa: F401
from . import effectiveness  # isort: skip # noqa: F401
from . import neurons  # isort: skip # noqa: F401
from . import lens, logit_lens  # isort: skip # noqa: F401
from . import candidates  # isort: skip # noqa: F401
from . import cut, stability, tradeoff  # isort: skip # noqa: F401
from .export import Exported, check_page, write_figures, write_page
from .figure import FIGURES, Figure, draw
from .findings import Finding, findings
from .report import report_html

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
