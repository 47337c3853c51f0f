from .findings import Finding as Finding
from .report import report_html as report_html
from .tables import facts_html as facts_html

__all__ = [
    "Finding",
    "facts_html",
    "report_html",
]
