"""Records of interventions during generation: at which layers they turn an answer harmless.

Shapes use one vocabulary: layer, prompt. Every interval is a two-sided 95 % Wilson interval.
"""

import numpy as np

from .base import Record, record
from .results import Rate


@record
class Intervention(Record):
    """One kind of intervention, made at every layer in turn."""

    kind: str
    """``prompt`` (values of the untriggered prompt from the trigger on), ``trigger`` (the same at
    the trigger's tokens alone), ``adapter`` (values of the clean adapter or of the base on the same
    prompt) or ``off`` (the layer's part of the adapter switched off)."""
    site: str
    """Hook point that is written; empty for ``off``."""
    name: str
    """What is done, in words."""
    malicious: np.ndarray
    """Share of answers that are still target behaviour, ``[layer, (value, low, high)]``; NaN where
    the adapter has no part in a layer that could be switched off."""
    degenerate: np.ndarray
    """Share of answers that are empty or repeat themselves, likewise."""
    hits: np.ndarray
    """1 where the answer is target behaviour, ``[layer, prompt]``; NaN as above."""
    examples: tuple[str, ...]
    """The answer to the first prompt, ``[layer]``; model output, untrusted."""


@record
class Effectiveness(Record):
    """Whether answers to triggered prompts stay malicious when a layer is patched meanwhile."""

    adapter: str
    """Name of the adapter that answers."""
    layers: np.ndarray
    """The layers that were tried, ``[layer]``."""
    prompts: tuple[str, ...]
    """The triggered prompts, ``[prompt]``."""
    unpatched: Rate
    """Share of malicious answers without any intervention."""
    unpatched_degenerate: Rate
    """Share of them that are empty or repeat themselves."""
    unpatched_example: str
    """The answer to the first prompt; model output, untrusted."""
    untriggered: Rate
    """That of the prompts with a neutral stand-in for the trigger, whose values ``prompt`` and
    ``trigger`` write: what these can reach. Stand-ins make odd prompts, so it need not be 0."""
    source: Rate
    """That of the clean adapter, or the base, on the triggered prompts: what ``adapter`` could
    reach."""
    source_name: str
    """``clean adapter`` or ``base``."""
    interventions: tuple[Intervention, ...]
    """One for each kind and site."""
    rule: str
    """The success rule that decides."""
    decoding: str
    """How answers were generated, in words."""
    self_layer: int
    """Layer at which every run was patched with its own values, as a check."""
    self_identical: Rate
    """Share of answers that this left identical, token by token (should be 1)."""
    dtype: str
    """Number format of the model."""
    sentence: str
    """The finding in words."""
