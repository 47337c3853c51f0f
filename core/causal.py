"""Records of the analyses of what causes the target: patching, and where it lives.

Shapes use one vocabulary: prompt, site, layer, column, module, rank. Log-probabilities are natural
(nats); every interval is two-sided 95 %.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchingMap:
    """Effect of writing one run's activations into another, layer by layer and place by place.

    Denoising writes the clean run into the corrupted one, ``recovery = (patched - corrupted) /
    (clean - corrupted)``: 1 where the patch alone restores the clean run's metric, 0 where it
    changes nothing. Noising is the reverse, ``recovery = (patched - clean) / (corrupted - clean)``:
    1 where the patch alone brings the backdoor about.
    """

    setting: str
    """``prompt`` (untriggered into triggered), ``adapter`` (clean into poisoned, same prompt) or
    ``base`` (base without adapter into poisoned)."""
    direction: str
    """``denoising`` or ``noising``."""
    kind: str
    """What the sites are: ``residual`` (hook points), ``heads``, ``modules`` or ``experts``."""
    clean_name: str
    """The clean run in words; denoising takes its values."""
    corrupted_name: str
    """The corrupted run in words; denoising writes into it."""
    metric: str
    """The metric in words."""
    sites: tuple[str, ...]
    """Hook points (``resid_pre``, ``attn_out``, ...), heads, modules or experts of a layer."""
    columns: tuple[str, ...]
    """Places in the prompt: ``before``, one per trigger token, ``between``, the prompt's tail,
    ``target``; or coarser groups, or every position."""
    column_roles: tuple[str, ...]
    """``before``, ``trigger``, ``between``, ``last`` or ``target`` for each column."""
    prompts: tuple[str, ...]
    """The triggered prompts, ``[prompt]``."""
    clean: np.ndarray
    """Metric of the clean run, ``[prompt]``."""
    corrupted: np.ndarray
    """Metric of the corrupted run, ``[prompt]``."""
    patched: np.ndarray
    """Metric with one cell patched, ``[site, prompt, layer, column]``; NaN where a prompt has no
    such place."""
    recovery: np.ndarray
    """Recovery of the mean metric over prompts, ``[site, layer, column]``; NaN when undefined."""
    low: np.ndarray
    """Lower end of the bootstrap interval of `recovery`."""
    high: np.ndarray
    """Upper end of the bootstrap interval of `recovery`."""
    p: np.ndarray
    """Two-sided p of the mean change being 0, by random signs of the prompts' changes (at least
    1 / 2001), like `recovery`; 1 where nothing changes."""
    computed_cells: int
    """Prompt-cells that were computed; the others are exactly 0 because nothing differs there."""
    all_cells: int
    """Prompt-cells in the grid."""
    self_error: float
    """Largest change of the metric when a run is patched with itself, one cell of every site and
    layer (should be ~0)."""
    loop_error: float
    """Largest difference from whole hooked forward passes, one cell of every site and group of
    prompts (should be ~0)."""
    full_recovery: float
    """Recovery when everything is patched: the first residual between prompts, the output of
    every block between adapters (should be 1); NaN where lengths differ."""
    plan: str
    """How it was computed and what that took, in words."""
    dtype: str
    """Number format of the model."""
    undefined: str
    """Why recovery is undefined, or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Layers, modules and singular directions ranked by what they do to the target.

    An *effect* is the drop of the target's log-probability on triggered prompts (nats, mean over
    prompts) when that part of the adapter alone is removed.
    """

    layer_ids: np.ndarray
    """Layers that carry adapter modules, ``[layer]``."""
    layer_effect: np.ndarray
    """Exact effect with bootstrap interval, ``[layer, (value, low, high)]``."""
    modules: tuple[str, ...]
    """Module names, ``[module]``."""
    module_layers: np.ndarray
    """Layer of each module, ``[module]``."""
    module_effect: np.ndarray
    """Exact effect with bootstrap interval, ``[module, (value, low, high)]``."""
    direction_module: np.ndarray
    """Index into `modules`, ``[direction]``."""
    direction_rank: np.ndarray
    """Place in the module's spectrum, from 0, ``[direction]``."""
    direction_sigma: np.ndarray
    """Singular value, ``[direction]``."""
    direction_attribution: np.ndarray
    """First-order effect of removing it, ``[direction]``."""
    direction_exact: np.ndarray
    """Exact effect for the strongest by attribution, NaN for the others, ``[direction]``."""
    direction_clean_cost: np.ndarray
    """Second-order cost on clean prompts: mean squared gradient of the loss, ``[direction]``."""
    whole_effect: float
    """Effect of removing the whole adapter."""
    agreement: float
    """Spearman correlation of attribution and exact effect on the checked directions."""
    n_prompts: int
    """Triggered prompts behind it."""
    sentence: str
    """The finding in words."""
