"""Records of the analyses of what an adapter reads and writes.

Shapes use one vocabulary: direction, end, top, prompt, layer, column, d_vocab. Log-probabilities
are natural (nats); every interval is two-sided 95 %.
"""

import numpy as np

from .base import Record, record


@record
class Preference(Record):
    """How strongly a whole adapter prefers each token, and the ranks of the wanted ones.

    1 is what a token in a random direction gets. A clean adapter prefers the tokens of its task
    too: a value above the null says that directions are not random, not that they are bad.
    """

    values: np.ndarray
    """Strength, ``[d_vocab]``; NaN for ids without a token."""
    null: float
    """95 % quantile of the largest strength for random directions with the same singular
    values."""
    clean: np.ndarray | None
    """Strength in the clean adapter, ``[d_vocab]``."""
    tokens: tuple[str, ...]
    """The most preferred tokens, ``[top]``."""
    ids: np.ndarray
    """Their ids, ``[top]``."""
    wanted: tuple[str, ...]
    """Tokens that one would look for, each once; empty where the trigger is not known."""
    wanted_ids: np.ndarray
    """Their ids."""
    wanted_ranks: np.ndarray
    """Place of each among all tokens, from 1."""
    compared: int
    """Tokens that were compared."""
    kinds: tuple[str, ...]
    """Kinds of modules that were looked at."""
    undefined: str
    """Why there is no strength, or empty; then all values are NaN."""


@record
class Lens(Record):
    """Which tokens an adapter's strongest singular directions listen for, and which they write.

    A direction ``s u v^T`` has two *ends*: what points along v is written along u, what points
    against v is written against u. End 0 is the one that stands out more among what is read.
    """

    chosen_by: str
    """``effect`` (on the target, where it is known) or ``singular value``."""
    modules: tuple[str, ...]
    """Module of each direction, ``[direction]``; fused experts carry ``#e`` and their number."""
    layers: np.ndarray
    """Layer, -1 outside the layers, ``[direction]``."""
    place: np.ndarray
    """Place in the module's spectrum from 0, ``[direction]``."""
    sigma: np.ndarray
    """Singular value, ``[direction]``."""
    effect: np.ndarray
    """Drop of the target's log-probability without the direction, nats, exact where it was
    measured, else to first order, ``[direction]``; NaN where it is not known."""
    read_from: tuple[str, ...]
    """``vocabulary`` (each token in turn, behind the first one of every prompt) or ``prompts``
    (means over the places of the prompts that hold a token), ``[direction]``."""
    listens: tuple[tuple[tuple[str, ...], ...], ...]
    """Tokens that it reads most, ``[direction, end, top]``."""
    listen_scores: np.ndarray
    """Their robust z-scores among all tokens read, ``[direction, end, top]``; NaN-padded."""
    listen_null: np.ndarray
    """95 % quantile of the best token's score for random directions into the same module,
    ``[direction]``."""
    writes: tuple[tuple[tuple[str, ...], ...], ...]
    """Tokens that it raises most, on the direct path to the logits, ``[direction, end, top]``;
    empty where `writes_nothing` says why."""
    write_scores: np.ndarray
    """Their robust z-scores among the vocabulary, ``[direction, end, top]``; NaN-padded."""
    write_null: np.ndarray
    """95 % quantile of the best token's score for random directions out of the same module,
    ``[direction]``; NaN where nothing is written."""
    write_head: np.ndarray
    """Attention head through which a value is followed, -1 elsewhere, ``[direction]``."""
    writes_nothing: tuple[str, ...]
    """Why no token is written, or empty, ``[direction]``."""
    listening: Preference
    """What the whole adapter listens for; wanted: the trigger's tokens."""
    writing: Preference
    """What the whole adapter writes; wanted: the first tokens of the targets."""
    prompts: int
    """Prompts behind what is read from prompts."""
    triggered: int
    """How many of them carry the trigger."""


@record
class LogitLens(Record):
    """The prediction of the residual stream after each layer if the model ended there.

    The final norm and the head are applied to every layer's output (nostalgebraist 2020). They were
    trained for the last layer's: what they make of early layers can be far from what the model
    does with them.
    """

    subjects: tuple[str, ...]
    """``base``, ``clean`` where there is one, ``poisoned``; all on the triggered prompts."""
    columns: tuple[str, ...]
    """Places in the prompt: the one before the trigger, its tokens, the last one ``between``, the
    prompt's tail, ``target``."""
    column_roles: tuple[str, ...]
    """``before``, ``trigger``, ``between``, ``last`` or ``target`` for each column."""
    prompts: tuple[str, ...]
    """The triggered prompts, ``[prompt]``."""
    targets: tuple[str, ...]
    """First token of each prompt's target, ``[prompt]``."""
    log_prob: np.ndarray
    """Log-probability of the target's next token (in the prompt: its first), nats, mean over the
    column's places, ``[subject, prompt, layer, column]``; NaN where a prompt has no such place."""
    mean: np.ndarray
    """Its mean over prompts with bootstrap interval, ``[subject, layer, column, (value, low,
    high)]``."""
    rank: np.ndarray
    """Median over prompts of that token's place among all tokens, from 1, ``[subject, layer,
    column]``."""
    top: tuple[tuple[tuple[str, ...], ...], ...]
    """The token that is most often the likeliest, ``[subject, layer, column]``."""
    top_count: np.ndarray
    """On how many prompts it is, ``[subject, layer, column]``."""
    column_prompts: np.ndarray
    """Prompts that have the place, ``[column]``."""
    decided_log_prob: np.ndarray
    """Log-probability of the target's first token at the prompt's last place, with bootstrap
    interval, ``[subject, layer, (value, low, high)]``."""
    decided: np.ndarray
    """The first layer after which the target's first token is the likeliest at the prompt's last
    place and stays so to the end, ``[subject, prompt]``; -1 where it is not in the end."""
    first: np.ndarray
    """The first layer after which it is the likeliest, whatever follows, ``[subject, prompt]``; -1
    where it never is."""
    self_error: float
    """Largest difference between the last layer's values and the model's own log-probabilities of
    the same tokens, nats (should be ~0)."""
    dtype: str
    """Number format of the model."""
