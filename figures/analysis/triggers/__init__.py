"""Figures of the search for an unknown trigger."""
