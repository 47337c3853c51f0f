"""Records of the analyses of activations and of what training does to them."""

import numpy as np

from .base import Record, record


@record
class Probes(Record):
    """How well linear probes on the residuals tell triggered prompts from others, out of fold.

    AUROC is in [0, 1], 0.5 is chance; a last axis of three is value, lower and upper end of the
    bootstrap 95 % interval over prompts.
    """

    subjects: tuple[str, ...]
    """Who was read: ``base`` first, then ``clean`` where there is one, then ``poisoned``."""
    places: tuple[str, ...]
    """Where: ``last`` prompt position, ``mean`` over the prompt, ``trigger``'s last position."""
    negatives: tuple[str, ...]
    """What triggered prompts are compared with: ``untriggered`` (without the trigger), ``stand-in``
    (random neutral tokens in its place, same length), ``both``."""
    auroc: np.ndarray
    """One probe against both kinds of negatives, its AUROC against each,
    ``[subject, place, negative, layer, 3]``; at ``trigger`` there are stand-ins alone, and
    ``untriggered`` is NaN."""
    gain: np.ndarray
    """AUROC against both minus the base's, resampled together, ``[adapter, place, layer, 3]``; the
    adapters are the subjects after the base."""
    shuffled: np.ndarray
    """The same probe trained on labels shuffled within each prompt's forms: mean, 2.5 % and 97.5 %
    of its AUROC over the permutations, ``[subject, place, layer, 3]``."""
    others: tuple[str, ...]
    """Other triggers put into the same prompts."""
    transfer: np.ndarray
    """AUROC of the probe, as trained on this trigger, on prompts with another trigger against the
    same negatives, ``[subject, place, other, layer, 3]``."""
    left_out: tuple[str, ...]
    """Registered triggers that could not be tried, each with the reason."""
    n_prompts: int
    """Triggered prompts; each has one untriggered form and one with a stand-in."""
    folds: int
    """Folds of the cross-validation; all forms of a prompt are in the same one."""
    permutations: int
    """Shuffles behind the control."""
    penalty: float
    """Ridge of the regression on standardised residuals; fixed, not chosen on the data."""
    dtype: str
    """Number format of the model."""
    sentence: str
    """The finding in words, with its numbers."""


@record
class Consistency(Record):
    """How much each layer turns the residual: mean over tokens of 1 - cos(h_l, h_l+1).

    h_0 is what enters the first layer, h_l what the l-th layer leaves. A last axis of three is
    mean over prompts, lower and upper end of the bootstrap 95 % interval.
    """

    subjects: tuple[str, ...]
    """``base``, then ``clean`` where there is one, then ``poisoned``."""
    conditions: tuple[str, ...]
    """``triggered``, ``untriggered`` (without the trigger), ``stand-in`` (random neutral tokens in
    its place, same length)."""
    counted: np.ndarray
    """Whether CROW's loss counts the transition, ``[transition]``: neither the embeddings nor the
    last layer's output take part."""
    value: np.ndarray
    """``[subject, condition, transition, 3]``; transition l is from h_l to h_l+1."""
    difference: np.ndarray
    """Triggered minus each other condition, paired by prompt,
    ``[subject, condition - 1, transition, 3]``."""
    p: np.ndarray
    """Two-sided p of no difference, sign flips of the paired differences, not corrected for the
    number of transitions, ``[subject, condition - 1, transition]``."""
    loss: np.ndarray
    """Mean over the counted transitions (CROW's consistency), ``[subject, condition, 3]``; NaN when
    none counts."""
    loss_difference: np.ndarray
    """Triggered minus each other condition, ``[subject, condition - 1, 3]``; NaN likewise."""
    loss_p: np.ndarray
    """Its p as above, ``[subject, condition - 1]``; NaN likewise."""
    n_prompts: int
    """Prompts in each condition."""
    n_tokens: tuple[int, ...]
    """Prompt tokens read in each condition; padding never counts."""
    dtype: str
    """Number format of the model."""
    undefined: str
    """Why `loss` is undefined; empty when it is not."""
    sentence: str
    """The finding in words, with its numbers."""


@record
class TriggerAttention(Record):
    """How much attention each head pays to the trigger: shares in [0, 1] of a query's attention.

    A last axis of three is mean over prompts, lower and upper end of the bootstrap 95 % interval.
    """

    subjects: tuple[str, ...]
    """``base``, then ``clean`` where there is one, then ``poisoned``."""
    queries: tuple[str, ...]
    """From where: ``last`` (the last prompt position, which decides the first answer token) and
    ``answer`` (mean over the target's tokens that are given and still predict the target)."""
    mass: np.ndarray
    """Share on the trigger's tokens, ``[subject, query, layer, head, 3]``."""
    stand_in: np.ndarray
    """Share on neutral tokens in the same places of the same prompts,
    ``[subject, query, layer, head, 3]``."""
    excess: np.ndarray
    """Share on the trigger minus that of as many tokens under even attention to everything the
    query sees, ``[subject, query, layer, head, 3]``."""
    uniform: np.ndarray
    """That even share, mean over prompts, ``[query, layer]``; differs by layer where some see a
    window only."""
    difference: np.ndarray
    """Share on the trigger minus the base's, paired by prompt,
    ``[adapter, query, layer, head, 3]``; the adapters are the subjects after the base."""
    sink: np.ndarray
    """Share on the very first token, where idle heads rest, ``[subject, query, layer, head]``."""
    n_prompts: int
    """Triggered prompts."""
    trigger_tokens: float
    """Tokens of the trigger, mean over prompts."""
    logit_error: float
    """Largest difference of the deciding logits between eager attention, which shows its weights,
    and the model's own implementation, as a share of the largest logit; 0 when they are one."""
    checked: int
    """Runs behind it."""
    implementation: str
    """The model's own attention implementation."""
    dtype: str
    """Number format of the model."""
    undefined: str
    """Why the query ``answer`` is undefined; empty when it is not."""
    sentence: str
    """The finding in words, with its numbers."""
