"""Record of runs side by side: profiles along the depth of models of different size.

Depth runs from 0, the embedding, to 1, the end of the last layer: of L layers, number l covers
``l / L`` to ``(l + 1) / L``. What belongs to a layer is at its middle, ``(l + 0.5) / L``; what
enters it, ``resid_pre``, at ``l / L``. A model of one layer has one point, at 0.5.
"""

import numpy as np

from .base import Record, record


@record
class Landmark(Record):
    """The place along the depth where a profile stands out."""

    kind: str
    """``peak``, the largest value; ``rise``, the first, or ``fall``, the last with half of it."""
    top: float
    """The largest value; NaN when none is defined."""
    depth: float
    """Where the landmark is; NaN when nothing stands out."""
    low: float
    """Shallow end of its 95 % band, half a layer of resolution included; NaN without intervals."""
    high: float
    """Deep end of its band."""
    how: str
    """Where the band comes from, or why there is none."""


@record
class Profile(Record):
    """One quantity along the depth of one run."""

    key: str
    """Name by which runs are matched, ``[a-z0-9-]``."""
    group: str
    """Profiles of one group are drawn together, ``[a-z0-9-]``."""
    question: str
    """What the group is about, in words."""
    title: str
    """Which profile of the group it is."""
    unit: str
    """What one unit of `value` is."""
    measure: str
    """What must be equal for two runs to be compared, e.g. the metric; empty: nothing."""
    layer: np.ndarray
    """Layers, ascending, ``[point]``."""
    depth: np.ndarray
    """Their depth, 0 to 1, ``[point]``."""
    value: np.ndarray
    """The quantity; NaN where it is undefined, ``[point]``."""
    low: np.ndarray
    """Lower end of its 95 % interval; NaN where there is none, ``[point]``."""
    high: np.ndarray
    """Upper end, ``[point]``."""
    floor: float
    """The value that means nothing, e.g. 0 for an effect; NaN: there is none."""
    n: int
    """Prompts behind it; 0 for weights."""
    landmark: Landmark
    """Where it stands out."""
    undefined: str
    """Why there are no values, or empty."""


@record
class AcrossRun(Record):
    """One of the runs."""

    name: str
    """Its name, different for each."""
    base: str
    """The base model."""
    trigger: str
    """The trigger."""
    target: str
    """The target."""
    layers: int
    """Layers of the base."""
    layers_from: str
    """Where that number comes from."""
    missing: tuple[str, ...]
    """Analyses that another run has and this one lacks."""
    profiles: tuple[Profile, ...]
    """What can be compared, by key."""


@record
class Agreement(Record):
    """Whether one profile has the same shape in two runs."""

    key: str
    """The profile."""
    first: str
    """One run."""
    second: str
    """The other."""
    n: int
    """Points: layers of the run with fewer that lie inside the other's range of depth."""
    rho: float
    """Spearman correlation over these points, the finer run interpolated; NaN when undefined."""
    p: float
    """Chance of a correlation as large between unrelated profiles as smooth as these."""
    p_free: float
    """The same if layers were exchangeable; too small wherever neighbours are alike."""
    q: float
    """`p` corrected for the number of correlations (Benjamini & Hochberg 1995)."""
    undefined: str
    """Why there is no correlation, or empty."""


@record
class Across(Record):
    """Runs of different models compared at equal depth."""

    runs: tuple[AcrossRun, ...]
    """The runs, in the order in which they were given."""
    agreements: tuple[Agreement, ...]
    """Each profile in each pair of runs that have it."""
    findings: tuple[str, ...]
    """Where the runs agree and where they do not, as far as it is supported; may be empty."""
    notes: tuple[str, ...]
    """What was left out, and why."""
