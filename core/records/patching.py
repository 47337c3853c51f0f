"""Records of the analyses of what causes the target: patching, and where it lives.

Shapes use one vocabulary: prompt, site, layer, column, module, rank. Log-probabilities are natural
(nats); every interval is two-sided 95 %.
"""

import numpy as np

from ..errors import LoratomyError
from .base import Record, record
from .results import Rate


@record
class PatchingMap(Record):
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


@record
class Vote(Record):
    """One method's scores of all items."""

    method: str
    """The analysis, and which of its settings."""
    what: str
    """What the score is, in words."""
    score: np.ndarray
    """The more, the more it finds there, ``[item]``; NaN where it knows nothing."""
    n: int
    """Prompts behind it; 0 for what is read from weights."""
    causal: bool
    """Whether it comes from changing something and measuring the target."""


@record
class Verdict(Record):
    """The methods' scores of layers, modules or directions together."""

    what: str
    """``layer``, ``module`` or ``direction``."""
    names: tuple[str, ...]
    """The items, ``[item]``."""
    votes: tuple[Vote, ...]
    """One for each method."""
    mean_rank: np.ndarray
    """Mean rank over the causal votes, 1 for the strongest, ``[item]``; NaN where none knows it."""
    agreement: float
    """Kendall's W of the causal votes, from 0 to 1; NaN with fewer than two."""
    chance: float
    """How often as many methods would meet at one item by chance, at most."""
    named: str
    """The item on which the methods agree; empty where they do not."""
    sentence: str
    """The verdict in words."""


@record
class Where(Record):
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
    layers_verdict: Verdict | None
    """The methods' scores of the layers."""
    modules_verdict: Verdict | None
    """The methods' scores of the modules."""
    directions_verdict: Verdict | None
    """The methods' scores of the singular directions."""
    sentence: str
    """The finding of the removals in words."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers whose removal alone costs the target something for sure (the interval lies above
        0), the strongest first; the strongest one where none does."""
        order = np.argsort(-self.layer_effect[:, 0], kind="stable")
        sure = [i for i in order if self.layer_effect[i, 1] > 0] or list(order[:1])
        return tuple(int(self.layer_ids[i]) for i in sure)

    def directions(self, most: int) -> tuple[str, ...]:
        """The directions whose removal costs the target most, ``module:place``, strongest first:
        by exact effect where it was measured, else to first order.

        Raises:
            LoratomyError: the adapter has fused experts, whose directions have no such name here.
        """
        names = [self.modules[m] for m in self.direction_module]
        labels = [f"{name}:{k}" for name, k in zip(names, self.direction_rank, strict=True)]
        if len(set(labels)) < len(labels):
            raise LoratomyError(
                "this ranking is of fused experts, of which a plan names each by its number: write "
                "the plan by hand (loratomy operate --help)"
            )
        effect = np.where(
            np.isfinite(self.direction_exact), self.direction_exact, self.direction_attribution
        )
        order = np.argsort(-effect, kind="stable")[:most]
        return tuple(labels[i] for i in order)

    def plan(self, most: int = 8) -> dict[str, list[dict[str, list[str]]]]:
        """A plan that cuts these directions: ``study.operate("plan", **where.plan(8))``."""
        return {"cut": [{"directions": list(self.directions(most))}]}


@record
class ScreeningAgreement(Record):
    """How well one way of screening predicts the exact effects, over cells that were patched."""

    method: str
    """``attribution`` (first order) or ``integrated`` (integrated gradients)."""
    cells: str
    """``checked`` (all that were patched, half of them picked for being the strongest) or
    ``random`` (those drawn blindly from the rest)."""
    n: int
    """Cells behind it."""
    spearman: float
    """Rank correlation with the exact effect; NaN when undefined (under 3 cells, or all equal)."""
    low: float
    """Lower end of its interval, cells resampled."""
    high: float
    """Upper end of its interval."""
    error: float
    """Sum of the differences' magnitudes over that of the exact effects; NaN when those are 0."""
    signs: Rate | None
    """Cells in which the sign is the exact one, of those whose exact interval leaves out 0; None:
    there are none."""


@record
class Screening(Record):
    """Effects of all cells from gradients, with exact patching of the strongest and of random ones.

    An *effect* is the metric of the run with one cell patched minus that of the run as it is, in
    the metric's unit: the quantity of `PatchingMap.patched`. Effects are means over the prompts
    that have the cell, with bootstrap intervals; NaN where no prompt has it.
    """

    setting: str
    """``prompt``, ``adapter`` or ``base``, as in `PatchingMap`."""
    direction: str
    """``denoising`` or ``noising``."""
    source_name: str
    """The run that values are taken from, in words."""
    into_name: str
    """The run that they are written to, in words."""
    metric: str
    """The metric in words."""
    sites: tuple[str, ...]
    """Hook points, heads and LoRA modules, ``[site]``."""
    kinds: tuple[str, ...]
    """What each is: its own name for hook points, ``z``, ``lora``, ``experts`` or ``router``."""
    columns: tuple[str, ...]
    """Places in the prompt, as in `PatchingMap`."""
    column_roles: tuple[str, ...]
    """Role of each column."""
    prompts: tuple[str, ...]
    """The triggered prompts, ``[prompt]``."""
    source: np.ndarray
    """Metric of the run that values are taken from, ``[prompt]``."""
    into: np.ndarray
    """Metric of the run that they are written to, ``[prompt]``."""
    attribution: np.ndarray
    """First-order effect, ``[site, layer, column, (value, low, high)]``."""
    integrated: np.ndarray
    """Effect by integrated gradients, likewise."""
    exact: np.ndarray
    """Exact effect, likewise; NaN where not checked."""
    attribution_by_prompt: np.ndarray
    """First-order effect of every prompt, ``[site, prompt, layer, column]``."""
    integrated_by_prompt: np.ndarray
    """The same by integrated gradients."""
    exact_by_prompt: np.ndarray
    """The same, exact; NaN where not checked."""
    top: np.ndarray
    """Cells that were checked for their integrated effect, ``[site, layer, column]`` booleans."""
    random: np.ndarray
    """Cells that were drawn blindly from the others in which something differs, likewise."""
    blocks: tuple[str, ...]
    """What was integrated together: a hook point, all heads, one LoRA module, ``[block]``."""
    whole: np.ndarray
    """Exact mean effect of writing a whole block of one layer, all positions, ``[block, layer]``;
    NaN where a layer has none."""
    whole_integrated: np.ndarray
    """The same as the sum of the integrated effects of all positions; equal to `whole` with
    endless steps."""
    steps: int
    """Points of the way at which gradients were taken."""
    agreements: tuple[ScreeningAgreement, ...]
    """How well both ways predict the exact effects."""
    attribution_passes: int
    """Forward and backward passes of one prompt behind `attribution`."""
    integrated_passes: int
    """The same behind `integrated`."""
    exact_passes: int
    """Patched runs of one prompt behind `exact`."""
    all_cells: int
    """Patched runs of one prompt that an exact sweep over all cells would take."""
    self_error: float
    """Largest change of the metric when a run is patched with itself (should be ~0)."""
    loop_error: float
    """Largest difference of the exact cells from whole hooked forward passes (should be ~0)."""
    left_out: str
    """Sites that were requested and that this model or adapter does not have, or empty."""
    dtype: str
    """Number format of the model."""
    undefined: str
    """Why the agreement is undefined, or empty."""
    sentence: str
    """The finding in words."""
