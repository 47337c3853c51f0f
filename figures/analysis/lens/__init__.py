"""Figures of the tokens that adapters read and write, and of the target layer by layer."""
