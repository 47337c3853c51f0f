"""Runs of different models side by side, at equal depth."""
