from .analyses import CLEAN_ADAPTER as CLEAN_ADAPTER
from .analyses import CLEAN_ROWS as CLEAN_ROWS
from .analyses import TRIGGER as TRIGGER
from .analyses import Analysis as Analysis
from .catalogue import ANALYSES as ANALYSES
from .material import Material as Material

__all__ = [
    "ANALYSES",
    "CLEAN_ADAPTER",
    "CLEAN_ROWS",
    "TRIGGER",
    "Analysis",
    "Material",
]
