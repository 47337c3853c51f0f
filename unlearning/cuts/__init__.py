"""Edits of the weights by rule, and the baselines that need no fit."""
