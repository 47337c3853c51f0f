"""Activation patching: pairs of runs, sites, maps, screening, patched answers, nnsight."""
