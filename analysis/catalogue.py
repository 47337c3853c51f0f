"""Every analysis: importing this registers them, in the order in which they are run and shown."""

from . import spectra, difference, patching, where  # isort: skip # noqa: F401
from .analyses import ANALYSES

__all__ = ["ANALYSES"]
