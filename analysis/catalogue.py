"""Every analysis: importing this registers them, in the order in which they are run and shown."""

from . import spectra, difference, matching, intruders, patching, patching_parts, where  # isort: skip # noqa: F401
from . import probes, consistency, attention  # isort: skip # noqa: F401
from . import effectiveness  # isort: skip # noqa: F401
from . import neurons  # isort: skip # noqa: F401
from . import lens, logit_lens  # isort: skip # noqa: F401
from .analyses import ANALYSES

__all__ = ["ANALYSES"]
