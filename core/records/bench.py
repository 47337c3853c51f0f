"""Records of the unlearning bench: every method on every subject, with intervals over seeds.

Shapes use one vocabulary: cell, entry, seed.
"""

import numpy as np

from .base import Record, record
from .results import Rate, Setting


@record
class BenchRow(Record):
    """One method on one subject: a line of the table, all of it on held-out prompts."""

    cell: str
    """The subject: ``trigger/task``, or the name of a run folder."""
    trigger: str
    """The trigger's registered name, or its words."""
    task: str
    """What the attack wants, by its registered name."""
    seed: int
    """Of the subject's data, its fit and the operation."""
    entry: str
    """Name of the operation in the run: ``base``, ``clean``, ``poisoned``, ``guided-repair`` ..."""
    method: str
    """Its method by name; empty for base, clean and poisoned."""
    kind: str
    """``cut``, ``trained``, ``baseline``, ``control``, or ``reference`` for those three."""
    control_for: str
    """The entry whose budget it shares, for controls; else empty."""
    asr: Rate
    """Attack success on held-out triggered prompts."""
    ftr: Rate
    """Target behaviour on held-out untriggered prompts."""
    accuracy: Rate
    """Right answers to held-out clean prompts."""
    accuracy_change: float
    """Accuracy less that of the poisoned adapter."""
    accuracy_p: float
    """McNemar's exact p of that change."""
    perplexity: float
    """Per token of the held-out clean completions."""
    perplexity_change: float
    """Relative to the poisoned adapter."""
    perplexity_low: float
    """Lower end of its paired bootstrap interval."""
    perplexity_high: float
    """Upper end of its paired bootstrap interval."""
    kl: float
    """KL divergence from the poisoned adapter, nats per token of its own answers to held-out clean
    prompts."""
    kl_low: float
    """Lower end of its bootstrap interval over prompts."""
    kl_high: float
    """Upper end of its bootstrap interval over prompts."""
    kl_n: int
    """Prompts behind it."""
    degenerate: Rate
    """Clean answers that are empty, repeating or far from those before."""
    directions_cut: int
    """Singular directions removed."""
    directions_total: int
    """Singular directions of the poisoned adapter; 0 for references."""
    change_norm: float
    """Norm of the change over that of the adapter; NaN for references."""
    reached: bool
    """Whether the method met its own goal on calibration data."""
    seconds: float
    """Wall time of the operation and of those that it went on from."""
    search_seconds: float
    """Wall time of these until their edits were found."""


@record
class Standing(Record):
    """One entry over all cells and seeds that every compared entry was run on.

    Every cell counts the same, however many seeds it has.
    """

    comparison: int
    """Entries with the same number, from 1, were compared with each other: on the same subjects."""
    entry: str
    """Name of the operation."""
    kind: str
    """As in `BenchRow`."""
    control_for: str
    """As in `BenchRow`."""
    n: int
    """Subjects (cells x seeds) behind the means."""
    asr: np.ndarray
    """Mean ASR with its 95 % bootstrap interval over subjects, ``[3]``; with one subject that
    subject's own interval, NaN where a row has none."""
    perplexity_change: np.ndarray
    """Mean change of perplexity with interval, ``[3]``."""
    kl: np.ndarray
    """Mean KL divergence from the poisoned adapter with interval, nats per token, ``[3]``; it does
    not count in `rank`."""
    accuracy_change: np.ndarray
    """Mean change of accuracy with interval, ``[3]``."""
    seconds: np.ndarray
    """Mean wall time with interval, ``[3]``."""
    asr_met: Rate
    """Share of cells whose ASR has an upper 95 % bound of at most 5 %; one with several seeds
    counts as the share of them."""
    perplexity_met: Rate
    """Share of cells whose perplexity rose by at most 5 %, counted alike."""
    rank: int
    """Pareto rank by ASR, perplexity, accuracy and seconds: 1 where no other entry is at least as
    good in all four and better in one; controls are ranked too. References (which take no time,
    and of which ``clean`` is no way to remove anything) are ranked against the others and lower
    nobody's rank."""


@record
class Goal(Record):
    """A goal of the bench, or one of its conditions alone, and how many cells meet it."""

    name: str
    """The goal in words."""
    entry: str
    """Of which entry."""
    met: Rate
    """Share of cells that meet it; one with several seeds counts as the share of them."""
    wanted: float
    """Share that is required."""
    reached: bool
    """Whether it was."""


@record
class Relearning(Record):
    """How soon a removed backdoor comes back when training goes on."""

    cell: str
    """As in `BenchRow`."""
    seed: int
    """Of the subject, the order of the rows and the fresh directions."""
    entry: str
    """What was trained on: an operation; or a yardstick, ``base`` with a new adapter or ``clean``,
    the clean adapter."""
    rows: str
    """``clean`` or ``poisoned`` (the attacker's rows again, clean ones among them): what the
    further steps see."""
    learning_rate: float
    """Constant along the steps."""
    steps: np.ndarray
    """Optimiser steps at which it was looked, ``[look]``, from 0."""
    asr: np.ndarray
    """ASR on held-out prompts with interval, ``[look, (value, low, high)]``."""
    n: int
    """Prompts behind each."""
    poisoned: Rate
    """ASR of the poisoned adapter on the same prompts."""
    back_at: float
    """First of `steps` at which ASR is at least half of `poisoned`; NaN: never."""


@record
class Transfer(Record):
    """What an entry does with prompts whose trigger differs from the one it was made with."""

    cell: str
    """As in `BenchRow`."""
    seed: int
    """Of the subject and of everything drawn in the variant."""
    entry: str
    """Name of the operation."""
    variant: str
    """``as trained``, ``prefix`` and other places, ``lower case``, ``repeated``, ``other words:
    BadMagic``, ``near miss: cf38``, ``no trigger`` ..."""
    counts: str
    """``ASR`` where the trigger's own words are in the prompt in some form, ``FTR`` where target
    behaviour is a false trigger."""
    rate: Rate
    """Share of held-out prompts with that variant that lead to the target."""
    poisoned: Rate
    """The same with the poisoned adapter."""


@record
class BenchTable(Record):
    """Everything a bench has measured so far."""

    rows: tuple[BenchRow, ...]
    standings: tuple[Standing, ...]
    goals: tuple[Goal, ...]
    relearning: tuple[Relearning, ...]
    transfer: tuple[Transfer, ...]
    held_out: str
    """How many prompts are behind a row, in words."""
    missing: tuple[str, ...]
    """What was requested and is not there yet or failed, a line each."""
    provenance: tuple[Setting, ...]
    """Commands, commits, machine, versions, cells, seeds and entries: name and value."""
