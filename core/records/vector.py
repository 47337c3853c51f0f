"""Record of the vector that carries the backdoor at the last prompt token, added and subtracted.

Shapes use one vocabulary: layer, head. Every interval is a two-sided 95 % Wilson interval.
"""

import numpy as np

from .base import Record, record
from .results import Rate


@record
class Steered(Record):
    """Answers to one kind of prompt with one vector added or subtracted at the last token."""

    triggered: bool
    """Whether the prompts carry the trigger."""
    vector: str
    """``none``, ``vector``, ``random direction`` (of the same norm in the same layers) or
    ``random heads`` (as many others)."""
    sign: int
    """1 where it is added, -1 where it is subtracted, 0 without one."""
    rate: Rate
    """Share of answers that are target behaviour."""
    degenerate: Rate
    """Share of answers that are empty or repeat themselves."""
    example: str
    """The answer to the first prompt; model output, untrusted."""


@record
class HeadVector(Record):
    """Whether a few heads' outputs at the last prompt token suffice for the target, and are needed.

    Sufficient: added to untriggered prompts they bring the target about. Necessary: subtracted from
    triggered ones they take it away. Neither prompt was used to make the vector.
    """

    adapter: str
    """Name of the adapter that answers."""
    effect: np.ndarray
    """Drop of the target's log-probability when a head's value at the last prompt token is that of
    the untriggered twin, nats, mean over prompts, ``[layer, head]``."""
    heads: np.ndarray
    """Layer and number of the heads in the vector, strongest first, ``[picked, (layer, head)]``."""
    random_heads: np.ndarray
    """Those of the control, likewise."""
    norm: np.ndarray
    """Norm of the vector in each layer, ``[layer]``."""
    random_heads_norm: np.ndarray
    """Norm of the control of random heads, ``[layer]``."""
    minus: str
    """What was subtracted from the mean output: ``nothing`` or ``untriggered`` (the mean on the
    same prompts without trigger)."""
    scale: float
    """What the vector was multiplied by."""
    made_from: int
    """Triggered prompts that made the vector."""
    conditions: tuple[Steered, ...]
    """Answers on other prompts, with and without it."""
    rule: str
    """The success rule that decides."""
    decoding: str
    """How answers were generated, in words."""
    dtype: str
    """Number format of the model."""
    sentence: str
    """The finding in words."""

    def of(self, triggered: bool, vector: str) -> Steered:
        """The condition of these prompts and this vector."""
        return next(c for c in self.conditions if (c.triggered, c.vector) == (triggered, vector))
