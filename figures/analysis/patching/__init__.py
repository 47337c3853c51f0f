"""Figures of activation patching: maps, screening by gradients, answers while patched."""
