"""Rows: published formats, sets, attacks, the linter and the built-in world."""
