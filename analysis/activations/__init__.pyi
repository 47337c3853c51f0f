from .residuals import Batch as Batch
from .residuals import Prompts as Prompts
from .residuals import adapters_of as adapters_of
from .residuals import batches as batches
from .residuals import stream as stream

__all__ = [
    "Batch",
    "Prompts",
    "adapters_of",
    "batches",
    "stream",
]
