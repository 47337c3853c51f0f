"""Every analysis: importing this registers them, in the order in which they are run and shown.

An analysis that combines others comes after them.
"""

from . import spectra, difference, matching, intruders  # isort: skip # noqa: F401
from . import patching, patching_parts, screening, effectiveness, where  # isort: skip # noqa: F401
from . import lens, logit_lens, probes, consistency, attention, neurons  # isort: skip # noqa: F401
from . import candidates  # isort: skip # noqa: F401
from .analyses import ANALYSES

__all__ = ["ANALYSES"]
