from .across import RunAnalysis as RunAnalysis
from .across import RunSource as RunSource

__all__ = [
    "RunAnalysis",
    "RunSource",
]
