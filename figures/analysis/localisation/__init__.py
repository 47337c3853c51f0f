"""Figures of which layers, modules and directions carry the target."""
