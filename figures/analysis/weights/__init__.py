"""Figures of the weight changes: spectra, clean against poisoned, matching, intruders."""
