"""Figures of the analyses, one file for each record."""
