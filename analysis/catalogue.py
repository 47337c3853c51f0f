"""Every analysis: importing this registers them, in the order in which they are run and shown.

An analysis that combines others comes after them.
"""

from .weights import spectra, difference, matching, intruders  # isort: skip # noqa: F401
from .patching import patching, parts, screening, effectiveness  # isort: skip # noqa: F401
from .localisation import where  # isort: skip # noqa: F401
from .lens import lens, logit_lens  # isort: skip # noqa: F401
from .activations import probes, consistency, attention  # isort: skip # noqa: F401
from .neurons import neurons  # isort: skip # noqa: F401
from .triggers import candidates  # isort: skip # noqa: F401
from .analyses import ANALYSES

__all__ = ["ANALYSES"]
