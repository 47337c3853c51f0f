"""Every method: importing this registers them."""

from . import controls, plan  # noqa: F401  (they register)
from .cuts import (  # noqa: F401
    cuts,
    decoding,
    intruder_reduction,
    merging,
    projection,
    quantisation,
    scaling,
    wanda,
)
from .guided import guided, unknown  # noqa: F401
from .method import METHODS, Bench, Method, Outcome, check_needs, lacking, operate
from .trained import ascent, crow, finetune, negative, npo, repair, tsbd  # noqa: F401

__all__ = ["METHODS", "Bench", "Method", "Outcome", "check_needs", "lacking", "operate"]
