from .analysis.analyses import analysis as analysis
from .catalogues import analyses as analyses
from .catalogues import attacks as attacks
from .catalogues import methods as methods
from .catalogues import scorers as scorers
from .core.config import Config as Config
from .core.errors import LoratomyError as LoratomyError
from .core.records.base import Record as Record
from .core.records.base import record as record
from .evaluation.scorers import scorer as scorer
from .results import Operated as Operated
from .results import Results as Results
from .study import Study as Study
from .study import load as load
from .unlearning.method import method as method
from .verbs.opening import open as open
from .verbs.poisoning import poison as poison

__all__ = [
    "Config",
    "LoratomyError",
    "Operated",
    "Record",
    "Results",
    "Study",
    "analyses",
    "analysis",
    "attacks",
    "load",
    "method",
    "methods",
    "open",
    "poison",
    "record",
    "scorer",
    "scorers",
]
