"""One method per file: the cuts, guided surgery, repair, negative fine-tuning, the controls."""

from . import controls, cuts, guided, negative, projection, repair  # noqa: F401  (they register)
from .method import METHODS, Bench, Method, Outcome, operate

__all__ = ["METHODS", "Bench", "Method", "Outcome", "operate"]
