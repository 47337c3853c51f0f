"""One method per file: the cuts, guided surgery, the trained methods, baselines, the controls."""

from . import (  # noqa: F401  (they register)
    ascent,
    controls,
    crow,
    cuts,
    decoding,
    finetune,
    guided,
    intruder_reduction,
    merging,
    negative,
    npo,
    plan,
    projection,
    quantisation,
    repair,
    scaling,
    tsbd,
    unknown,
    wanda,
)
from .method import METHODS, Bench, Method, Outcome, check_needs, lacking, operate

__all__ = ["METHODS", "Bench", "Method", "Outcome", "check_needs", "lacking", "operate"]
