"""What is the smallest thing to cut: one method per file."""

from .catalogue import METHODS, Method, Outcome, check_needs, lacking, operate

__all__ = ["METHODS", "Method", "Outcome", "check_needs", "lacking", "operate"]
