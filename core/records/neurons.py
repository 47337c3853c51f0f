"""Records of how single neurons answer to unlearning, and how active they are.

Shapes use one vocabulary: module, neuron, direction, layer, step, unlearning. A neuron is one
output of an adapted module: one row of its weight change ``dW = scaling B A``.
"""

import numpy as np

from .base import Record, record


@record
class Unlearning(Record):
    """One gradient ascent on a copy of the poisoned adapter."""

    name: str
    """``clean``, ``poison`` or ``control``."""
    about: str
    """What was unlearned, in words."""
    loss: np.ndarray
    """Mean negative log-probability per completion token, nats, before each step and after the
    last, ``[step + 1]``."""
    right: np.ndarray
    """Share of what the model has as its first choice, ``[step + 1]``: of completion tokens, or of
    whole completions (the preceding tokens given), see `whole`."""
    whole: bool
    """Whether `right` counts whole completions."""
    steps: int
    """Steps taken."""
    most: int
    """Steps allowed."""
    reached: bool
    """Whether `right` fell to the stop rule's share of its start within the steps allowed."""
    rule: str
    """The stop rule in words."""
    moved: float
    """Frobenius norm of the change over that of dW, all modules together."""
    n_rows: int
    """Rows behind it."""
    n_tokens: int
    """Completion tokens behind it."""


@record
class Association(Record):
    """How far two unlearnings change the same neurons, or the same directions, most."""

    over: str
    """``neurons`` (NWC), or of singular directions ``strength`` (its size), ``signed`` (with its
    sign: below 0 one unlearning strengthens what the other weakens) or ``off``."""
    first: str
    """Name of one unlearning."""
    second: str
    """Name of the other."""
    n: int
    """Neurons or directions compared."""
    spearman: np.ndarray
    """Rank correlation over all modules with its 95 % interval, ``[3]``; modules resampled."""
    between: float
    """What it would be if the order inside each module were random: the part that the modules'
    levels alone explain."""
    within: np.ndarray
    """Rank correlation inside modules, pooled, with its 95 % interval, ``[3]``."""
    given_size: np.ndarray
    """The same with the size held fixed (partial rank correlation), ``[3]``: of neurons the row
    sum of |dW|, of directions the singular value."""
    given_control: np.ndarray
    """The same with the control unlearning's change held fixed too, ``[3]``; NaN where the control
    is one of the two."""
    layer_ids: np.ndarray
    """Layers, -1 outside them, ``[layer]``."""
    by_layer: np.ndarray
    """Rank correlation inside each layer with its 95 % interval, ``[layer, 3]``; neurons
    resampled."""
    top: np.ndarray
    """Shares of neurons called the top, ``[share]``."""
    overlap: np.ndarray
    """Share of one top that is in the other, ``[share]``; chance is the share itself."""
    overlap_modules: np.ndarray
    """Overlap expected if the order inside each module were random, ``[share]``."""


@record
class NeuronChange(Record):
    """Weight change of every neuron under clean and poison unlearning (TSBD, arXiv 2405.20291)."""

    modules: tuple[str, ...]
    """Full module names, ``[module]``; fused experts carry ``#e`` and the expert's number."""
    kinds: tuple[str, ...]
    """Last part of each name, ``[module]``."""
    layers: np.ndarray
    """Layer of each module, -1 outside the layers, ``[module]``."""
    unlearnings: tuple[Unlearning, ...]
    """The ascents, ``[unlearning]``."""
    neuron_module: np.ndarray
    """Index into `modules`; rows of one module follow each other, ``[neuron]``."""
    size: np.ndarray
    """Sum of |dW| over the neuron's incoming weights, ``[neuron]``."""
    nwc: np.ndarray
    """Sum of |dW' - dW| over the neuron's incoming weights, ``[unlearning, neuron]``; NaN where
    there was nothing to unlearn."""
    direction_module: np.ndarray
    """Index into `modules`, ``[direction]``."""
    direction_place: np.ndarray
    """Place in the module's spectrum from 0, ``[direction]``."""
    direction_sigma: np.ndarray
    """Singular value, ``[direction]``."""
    strength: np.ndarray
    """Change of the direction's strength, u^T (dW' - dW) v, ``[unlearning, direction]``."""
    off: np.ndarray
    """What else the change does to the direction: norm of its row u^T (dW' - dW) and column
    (dW' - dW) v without their common entry, ``[unlearning, direction]``."""
    associations: tuple[Association, ...]
    """How far the unlearnings agree; without those that had nothing to unlearn."""
    undefined: str
    """Which unlearning had nothing to unlearn, and why; empty when all did."""


@record
class NeuronActivity(Record):
    """Gradient norm of the clean loss per neuron, poisoned against a reference (TSBD)."""

    reference: str
    """``clean adapter``, or ``base without adapter`` where there is none."""
    modules: tuple[str, ...]
    """Full module names, ``[module]``; fused experts carry ``#e`` and the expert's number."""
    kinds: tuple[str, ...]
    """Last part of each name, ``[module]``."""
    layers: np.ndarray
    """Layer of each module, -1 outside the layers, ``[module]``."""
    neuron_module: np.ndarray
    """Index into `modules`, ``[neuron]``."""
    poisoned: np.ndarray
    """Mean over prompts of the norm of the loss's gradient in the neuron's incoming weights,
    nats per unit of weight, ``[neuron]``."""
    other: np.ndarray
    """The same with the reference, ``[neuron]``."""
    layer_ids: np.ndarray
    """Layers, -1 outside them, ``[layer]``."""
    layer_poisoned: np.ndarray
    """Mean over the layer's neurons with its 95 % interval over prompts, ``[layer, 3]``."""
    layer_other: np.ndarray
    """The same with the reference, ``[layer, 3]``."""
    layer_ratio: np.ndarray
    """Poisoned over reference, prompts resampled together, ``[layer, 3]``."""
    ratio: np.ndarray
    """The same over all neurons, ``[3]``."""
    more_active: float
    """Share of neurons with a larger mean gradient in the poisoned adapter."""
    loss_poisoned: float
    """Mean negative log-probability per completion token on these prompts, nats."""
    loss_other: float
    """The same with the reference."""
    n_prompts: int
    """Clean prompts behind every mean."""
    dtype: str
    """Number format of the weights and so of the gradients."""
