"""Records of the analyses of weight changes.

Shapes use one vocabulary: module, rank, layer, direction.
"""

import numpy as np

from .base import Record, record


@record
class LayerSpectra(Record):
    """Spectra of whole layers, from all singular values of a layer's modules pooled.

    Those are exactly the singular values of the layer's change as one block-diagonal matrix,
    ``diag(dW_q, dW_k, ...)``, so that every number means what it means for a module.
    """

    layers: np.ndarray
    """Layer numbers, ascending; -1 are the modules outside the layers, ``[layer]``."""
    frobenius: np.ndarray
    """Root of the sum of the modules' squared Frobenius norms, ``[layer]``."""
    share: np.ndarray
    """Share of the adapter's squared Frobenius norm, ``[layer]``; NaN where the adapter is 0."""
    effective_rank: np.ndarray
    """As of a module, ``[layer]``; 0 where the layer's change is 0."""
    stable_rank: np.ndarray
    """As of a module, ``[layer]``; 0 where the layer's change is 0."""
    energy: np.ndarray
    """Directions that carry 50, 90 and 99 % of the squared singular values, ``[layer, 3]``."""
    relative_norm: np.ndarray
    """Frobenius norm of the change over that of the adapted base weights, ``[layer]``; NaN where
    the base was not given or is 0."""


@record
class Spectra(Record):
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
    share: np.ndarray
    """Share of the adapter's squared Frobenius norm, ``[module]``; NaN where the adapter is 0."""
    energy: np.ndarray
    """Smallest numbers of directions that carry 50, 90 and 99 % of the squared singular values,
    ``[module, 3]``; 0 where dW = 0."""
    relative_norm: np.ndarray
    """``|dW|_F / |W|_F`` against the base weight, ``[module]``; NaN where the base was not given or
    is 0."""
    by_layer: LayerSpectra
    """The same of whole layers."""


@record
class Difference(Record):
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


@record
class Matching(Record):
    """Which singular directions of the poisoned change have a counterpart in the clean change.

    A direction is the rank-one matrix ``s u v^T``: it reads v and writes u. Shares are lengths of
    projections: they do not depend on signs, nor on how singular vectors of equal value are chosen
    in the clean adapter. Where poisoned singular values are equal, each of their directions
    carries the root mean square over all of them, which no choice changes either.
    """

    modules: tuple[str, ...]
    """Full module names, ``[module]``; fused experts carry ``#e`` and the expert's number."""
    kinds: tuple[str, ...]
    """Last part of each name, ``[module]``."""
    layers: np.ndarray
    """Layer of each module, -1 outside the layers, ``[module]``."""
    direction_module: np.ndarray
    """Index into `modules`, ``[direction]``; only directions with s > 0."""
    direction_place: np.ndarray
    """Place in the module's spectrum from 0, ``[direction]``."""
    sigma: np.ndarray
    """Singular value s, ``[direction]``."""
    partner: np.ndarray
    """Place of the clean direction that a one-to-one assignment gives it, -1 where the clean
    adapter has fewer, ``[direction]``."""
    similarity: np.ndarray
    """``|<u, u'>| |<v, v'>|`` with that partner, ``[direction]``; 0 without one."""
    similarity_chance: np.ndarray
    """Mean and 95th percentile of this similarity for random directions assigned in the same way,
    Monte Carlo, ``[module, 2]``; NaN where a side of the module has no directions."""
    input_share: np.ndarray
    """``|P_V v|``: the length of v inside the clean input space, ``[direction]``."""
    output_share: np.ndarray
    """``|P_U u|``: the length of u inside the clean output space, ``[direction]``."""
    input_chance: np.ndarray
    """The length of a random unit vector inside a space of the same dimension: its
    ``1 - level`` quantile, exact, ``[module]``; 1 where the clean space is everything."""
    output_chance: np.ndarray
    """The same on the output side, ``[module]``."""
    inside: np.ndarray
    """Share of the poisoned change's squared norm inside both clean spaces,
    ``|P_U dW P_V|² / |dW|²``, ``[module]``; NaN where dW = 0."""
    reverse_inside: np.ndarray
    """The same of the clean change inside the poisoned spaces, ``[module]``."""
    p_value: np.ndarray
    """How probable shares as large are for a random direction, the larger of the two sides,
    ``[direction]``; NaN where the clean spaces fill the module's whole input and output."""
    unmatched: np.ndarray
    """Whether ``p_value >= level``: at least one side is no nearer to the clean adapter than a
    random direction, ``[direction]``."""
    reverse_p_value: np.ndarray
    """The control, the same test with the adapters exchanged: clean directions against the poisoned
    change, ``[clean direction]``."""
    reverse_module: np.ndarray
    """Index into `modules` of the clean directions, ``[clean direction]``."""
    reverse_sigma: np.ndarray
    """Singular values of the clean directions, ``[clean direction]``."""
    reverse_unmatched: np.ndarray
    """Whether a clean direction has no counterpart in the poisoned change, by the same rule,
    ``[clean direction]``."""
    standing_out: np.ndarray
    """Unmatched and stronger than every unmatched direction of the control, ``[direction]``."""
    level: float
    """Chance with which a random direction passes for matched, from 0 to 1."""
    draws: int
    """Monte Carlo draws behind `similarity_chance`."""
    undefined: str
    """Why some directions could not be tested; empty when all were."""
    sentence: str
    """The result in words, with counts and the control."""


@record
class Intruders(Record):
    """Intruder dimensions: strong left singular vectors of W + dW that are unlike all those of W.

    Cosines are absolute values. Where W was not decomposed in full, the largest cosine is known
    between two bounds; a vector counts as intruder only when the upper bound is below `threshold`.
    """

    adapter: str
    """``clean`` or ``poisoned``."""
    modules: tuple[str, ...]
    """Full module names, ``[module]``; fused experts carry ``#e`` and the expert's number."""
    kinds: tuple[str, ...]
    """Last part of each name, ``[module]``."""
    layers: np.ndarray
    """Layer of each module, -1 outside the layers, ``[module]``."""
    singular_values: np.ndarray
    """The largest singular values of W + dW, descending, ``[module, k]``; NaN beyond the smaller
    side of a module."""
    base_values: np.ndarray
    """The largest singular values of W, descending, ``[module, k]``; NaN as above."""
    cosine: np.ndarray
    """Largest cosine with any left singular vector of W: lower bound, ``[module, k]``."""
    cosine_upper: np.ndarray
    """The same: upper bound, equal to `cosine` where W was decomposed in full, ``[module, k]``."""
    inside: np.ndarray
    """Length of the vector inside the span of the `reference` strongest left vectors of W,
    ``[module, k]``. Near 1 with a small cosine: W's own vectors of like value are mixed, nothing
    came in. NaN where W has no more vectors than that."""
    origin: np.ndarray
    """Place from 0 of the adapter's own left singular vector with the largest cosine,
    ``[module, k]``; -1 where dW = 0."""
    origin_cosine: np.ndarray
    """That cosine, ``[module, k]``; NaN where dW = 0."""
    intruders: np.ndarray
    """Vectors whose upper bound is below the threshold, ``[module]``."""
    undecided: np.ndarray
    """Vectors with the threshold between their bounds, ``[module]``."""
    residual: np.ndarray
    """Largest ``|M v - s u|`` or ``|M^T u - s v|`` over the largest singular value, of all singular
    triplets used of W and of W + dW, ``[module]``."""
    methods: tuple[str, ...]
    """How W was decomposed: ``exact`` (in full), ``lanczos`` (strongest triplets, quadrature
    bounds) or ``settled`` (in full, because those bounds left a vector undecided), ``[module]``."""
    threshold: float
    """Cosine below which a vector is an intruder."""
    k: int
    """Strongest vectors of W + dW looked at."""
    reference: int
    """Strongest vectors of W behind `inside` and, without a full decomposition, `cosine`."""
    sentence: str
    """The result in words, with counts, methods and the largest residual."""
