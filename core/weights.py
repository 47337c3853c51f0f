"""Records of the analyses of weight changes.

Shapes use one vocabulary: module, rank.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectra:
    """Exact singular values of each module's weight change dW = scaling B A."""

    adapter: str
    """``clean`` or ``poisoned``."""
    modules: tuple[str, ...]
    """Full module names, ``[module]``; fused experts carry ``#e`` and the expert's number."""
    kinds: tuple[str, ...]
    """Last part of each name, e.g. ``q_proj``, ``[module]``."""
    layers: np.ndarray
    """Layer of each module, -1 outside the layers, ``[module]``."""
    singular_values: np.ndarray
    """Descending, zero-padded, ``[module, rank]``."""
    frobenius: np.ndarray
    """Frobenius norm of dW, ``[module]``."""
    effective_rank: np.ndarray
    """exp of the entropy of s / sum s, ``[module]`` (Roy & Vetterli 2007); 0 where dW = 0."""
    stable_rank: np.ndarray
    """Frobenius² / largest², ``[module]``; 0 where dW = 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What separates the poisoned from the clean adapter, module by module, in factor form."""

    modules: tuple[str, ...]
    """Full module names, ``[module]``."""
    kinds: tuple[str, ...]
    """Last part of each name, ``[module]``."""
    layers: np.ndarray
    """Layer of each module, -1 outside the layers, ``[module]``."""
    clean_norm: np.ndarray
    """Frobenius norm of the clean change, ``[module]``."""
    poisoned_norm: np.ndarray
    """Frobenius norm of the poisoned change, ``[module]``."""
    difference_norm: np.ndarray
    """Frobenius norm of poisoned - clean, ``[module]``."""
    singular_values: np.ndarray
    """Of poisoned - clean, descending, zero-padded, ``[module, 2 rank]``."""
    input_angles: np.ndarray
    """Principal angles between the input subspaces, radians ascending, ``[module, rank]``; NaN
    beyond the smaller rank."""
    output_angles: np.ndarray
    """Principal angles between the output subspaces, as above."""
