"""Every method, in the order in which they are listed: surgery first, controls last."""

from . import controls, plan  # noqa: F401  (they register)
from .cuts import (  # noqa: F401
    cuts,
    decoding,
    intruder_reduction,
    merging,
    needle,
    projection,
    quantisation,
    scaling,
    wanda,
)
from .guided import guided, unknown  # noqa: F401
from .method import METHODS, Method, Outcome, check_needs, lacking, operate
from .trained import ascent, crow, finetune, negative, npo, repair, tsbd  # noqa: F401

__all__ = ["METHODS", "Method", "Outcome", "check_needs", "lacking", "operate"]

METHODS.arrange(
    *("guided", "guided-unknown", "repair", "negative", "npo", "ascent", "crow", "tsbd"),
    *("finetune", "truncate", "prune", "wanda", "reduce-intruders", "scale", "merge", "mask"),
    *("project", "project-difference", "needle", "plan", "quantise", "temperature"),
    *("control-random", "control-top", "control-layer", "control-finetune", "control-neurons"),
    "control-needle",
)
