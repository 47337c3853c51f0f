from .ascent import Ascent as Ascent
from .ascent import balanced as balanced
from .ascent import row_change as row_change
from .ascent import unlearn as unlearn

__all__ = [
    "Ascent",
    "balanced",
    "row_change",
    "unlearn",
]
