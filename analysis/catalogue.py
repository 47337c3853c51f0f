"""Every analysis, in the order in which they are run and shown.

An analysis that combines others comes after them.
"""

from .activations import attention, consistency, probes  # noqa: F401  (they register)
from .analyses import ANALYSES
from .lens import lens, logit_lens  # noqa: F401
from .localisation import vector, where  # noqa: F401
from .neurons import neurons  # noqa: F401
from .patching import effectiveness, parts, patching, screening  # noqa: F401
from .triggers import candidates  # noqa: F401
from .weights import difference, intruders, matching, spectra  # noqa: F401

__all__ = ["ANALYSES"]

ANALYSES.arrange(
    *("spectra", "difference", "matching", "intruders"),
    *("patching", "heads", "modules", "experts", "screening", "effectiveness", "where"),
    "vector",
    *("lens", "logit_lens", "probes", "consistency", "attention", "neurons", "candidates"),
)
