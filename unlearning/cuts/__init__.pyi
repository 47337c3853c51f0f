from .cuts import cut_outcome as cut_outcome
from .cuts import in_layers as in_layers
from .cuts import in_modules as in_modules
from .cuts import labelled as labelled
from .cuts import weakest as weakest

__all__ = [
    "cut_outcome",
    "in_layers",
    "in_modules",
    "labelled",
    "weakest",
]
