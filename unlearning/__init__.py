"""One method per file: the cuts, guided surgery, the trained methods, baselines, the controls."""

from . import controls, cuts, guided, negative, projection, repair  # noqa: F401  (they register)
from .method import METHODS, Bench, Method, Outcome, check_needs, lacking, operate

__all__ = ["METHODS", "Bench", "Method", "Outcome", "check_needs", "lacking", "operate"]
