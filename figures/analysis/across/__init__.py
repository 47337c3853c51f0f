"""Runs of different models side by side, as one page."""
