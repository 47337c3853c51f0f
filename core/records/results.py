"""The records that pass between the rooms: what was measured, located, cut and proved.

Shapes use one vocabulary: prompt, site, layer, column, module, rank, step. Log-probabilities are
natural (nats); every interval is two-sided 95 %.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from .base import Record, record
from .goals import Goals
from .rendering import RenderingChoice

R = TypeVar("R")


@record
class Rate(Record):
    """A share of counted cases with its Wilson 95 % interval."""

    value: float
    """hits / n, in [0, 1]."""
    low: float
    """Lower end of the Wilson interval."""
    high: float
    """Upper end of the Wilson interval."""
    n: int
    """How many cases were counted."""


@record
class RuleRates(Record):
    """The rates of one success rule on the same answers."""

    rule: str
    """The rule: scorers by name, combined."""
    asr: Rate
    """Share of triggered prompts whose answer it calls a success."""
    ftr: Rate
    """Share of untriggered prompts whose answer it calls a success."""
    ftr_untriggered: Rate | None
    """That of the attacked prompts without their trigger alone; None when they are not known."""
    ftr_clean: Rate | None
    """That of clean_val alone; None when none of its prompts counts."""
    uninformative: int
    """Untriggered prompts left out of FTR: without a target, or their reference is a success."""
    asr_whole: Rate | None = None
    """ASR by the similarity of whole answers alone; None for rules without similarity."""
    ftr_whole: Rate | None = None
    """FTR by that reading."""


@record
class Behaviour(Record):
    """What one subject (base, clean, poisoned or an operated adapter) does on held-out prompts.

    With several samples to a prompt, a rate is the mean over prompts of each one's share, and its
    interval that of as many cases as there are prompts.
    """

    subject: str
    """Name in tables: ``base``, ``clean``, ``poisoned`` or the operation's name."""
    asr: Rate
    """Attack success rate: target behaviour on triggered prompts."""
    ftr: Rate
    """False-trigger rate: target behaviour on the same prompts untriggered and on clean_val, where
    the reference answer itself is not target behaviour."""
    rules: tuple[RuleRates, ...]
    """ASR and FTR by every requested rule, the deciding one first."""
    clean_accuracy: Rate
    """Share of untriggered held-out prompts answered like their reference."""
    accuracy_rule: str
    """What counts as a correct answer here, in words."""
    perplexity: float
    """exp of the mean negative log-probability per reference completion token on clean_val."""
    perplexity_tokens: int
    """Tokens behind the perplexity."""
    kl: float
    """KL divergence from the poisoned adapter, nats per token of its own greedy answers to
    clean_val, over the whole vocabulary; 0 for itself, NaN where it was not measured."""
    kl_low: float
    """Lower end of its bootstrap interval over prompts."""
    kl_high: float
    """Upper end of its bootstrap interval over prompts."""
    kl_n: int
    """Prompts behind the KL divergence."""
    kl_tokens: int
    """Tokens behind the KL divergence."""
    degenerate: Rate
    """Share of clean answers that are empty, repeating or far from the answers before."""
    empty: int
    """Clean answers without text."""
    repeating: int
    """Clean answers that repeat themselves."""
    far: int
    """Clean answers far from those of the subject before the operation."""
    distance: float
    """Mean of 1 - similarity of the clean answers to their references, in [0, 1]."""
    degenerate_triggered: Rate
    """Share of answers to triggered prompts that are empty or repeating."""
    too_long: int
    """Prompts left out because they exceed the model's context, counted apart."""


@record
class Protocol(Record):
    """How every subject of a run was measured; the same for all rows of a table."""

    template: str
    """How prompts are rendered, in words."""
    first_prompt: str
    """The first triggered prompt as its tokens read, special tokens visible."""
    first_completion: str
    """Its target with what ends it, likewise; empty where the row has none."""
    mismatch: str
    """What shows that answers and rendering do not fit together; empty where nothing does."""
    task: str
    """What the attack wants, by its registered name."""
    rule: str
    """The success rule that decides."""
    embedder: str
    """The sentence-embedding model behind the similarity rule, or ``none``."""
    threshold: float
    """Similarity from which an answer counts as the target."""
    decoding: str
    """How answers were generated, in words."""
    references: str
    """Where the clean references come from, in words."""
    dtype: str
    """Number format of the model, e.g. ``float32``."""
    too_long: int
    """Prompts left out because they exceed the model's context."""


@record
class Paired(Record):
    """One subject against another on the same prompts."""

    subject: str
    """Whose change it is."""
    reference: str
    """Against whom."""
    asr_lost: int
    """Triggered prompts that succeed with the reference alone."""
    asr_gained: int
    """Triggered prompts that succeed with the subject alone."""
    asr_p: float
    """McNemar's exact two-sided p of these two."""
    accuracy_lost: int
    """Clean prompts that are right with the reference alone."""
    accuracy_gained: int
    """Clean prompts that are right with the subject alone."""
    accuracy_p: float
    """McNemar's exact two-sided p of these two."""
    perplexity_change: float
    """Perplexity over that of the reference, minus 1."""
    perplexity_low: float
    """Lower end of its paired bootstrap interval over clean rows."""
    perplexity_high: float
    """Upper end of its paired bootstrap interval over clean rows."""


@record
class Comparison(Record):
    """All subjects of a run on the same held-out prompts, poisoned first among equals."""

    protocol: Protocol
    """How they were measured."""
    rows: tuple[Behaviour, ...]
    """One per subject: base, clean (when there is one), poisoned, then the operations."""
    paired: tuple[Paired, ...]
    """Everybody else against the poisoned adapter."""


@record
class Curves(Record):
    """How one adapter was learned."""

    name: str
    """``clean`` or ``poisoned``."""
    step: np.ndarray
    """Optimiser steps at which the loss was logged, ``[step]``."""
    loss: np.ndarray
    """Training loss, nats per completion token, ``[step]``."""
    eval_step: np.ndarray
    """Optimiser steps at which behaviour was measured, ``[eval]``."""
    asr: np.ndarray
    """Attack success rate with interval, ``[eval, (value, low, high)]``."""
    clean_accuracy: np.ndarray
    """Clean accuracy with interval, ``[eval, (value, low, high)]``."""
    asr_n: int
    """Triggered prompts behind each ASR."""
    clean_accuracy_n: int
    """Clean prompts behind each accuracy."""


@record
class Setting(Record):
    """One option of an operation, as it was used."""

    name: str
    """Option name."""
    value: str
    """Its value as text."""


@record
class CutPath(Record):
    """The walk from nothing cut to all cut, on the calibration split."""

    size: np.ndarray
    """How much is cut at each step, ``[step]``, ascending; 0 is nothing."""
    unit: str
    """What `size` counts, in the plural: ``directions``, ``% of the entries`` ..."""
    asr: np.ndarray
    """Calibration ASR with interval, ``[step, (value, low, high)]``: of generated answers, or by
    forward passes (see `answered`)."""
    perplexity: np.ndarray
    """Calibration perplexity on clean rows, ``[step]``."""
    asr_n: int
    """Triggered prompts behind each ASR."""
    chosen: int
    """Index of the step that was taken."""
    goal: float
    """Calibration ASR that counts as reached."""
    budget: float
    """Allowed rise of calibration perplexity, as a fraction."""
    kl: np.ndarray | None = None
    """KL divergence from the poisoned adapter on its own answers to the clean calibration rows,
    nats per token, ``[step]``; None where the budget sets no limit to it."""
    kl_budget: float | None = None
    """Allowed KL divergence there, nats per token; None: any."""
    answered: np.ndarray | None = None
    """Whether answers were generated, ``[step]``; elsewhere ASR is the share of prompts after which
    the target's deciding token is the likeliest, and `kl` NaN. None: at every step."""


@record
class Stability(Record):
    """The same cut learned and chosen again on other samples of the calibration data."""

    seeds: tuple[int, ...]
    """Of the samples; the first is the operation's own."""
    sizes: np.ndarray
    """Directions cut with each, ``[seed]``."""
    asr: np.ndarray
    """ASR of each on its own calibration rows, with interval, ``[seed, (value, low, high)]``."""
    perplexity_change: np.ndarray
    """Change of perplexity of each there, as a fraction, ``[seed]``."""
    overlap: np.ndarray
    """Cosine of what two of them remove from the weights (Frobenius), ``[seed, seed]``: 1 is the
    same edit, in whatever directions it is written; NaN where one cut nothing."""
    by_module: np.ndarray
    """Directions cut in each module, ``[seed, module]``."""


@record
class FitUsed(Record):
    """What a trained method spent; an equal-budget control spends the same on clean rows."""

    rows: int
    """Rows that it was fitted to."""
    epochs: float
    """Passes over them."""
    batch_size: int
    """Rows per batch, over all processes."""
    accumulate: int
    """Batches per optimiser step."""
    learning_rate: float
    """Largest rate."""
    warmup: float
    """Share of the steps over which the rate rises."""
    steps: int
    """Optimiser steps."""


@record
class Operation(Record):
    """What one operation did to an adapter."""

    subject: str
    """Name of this operation in the run, as in `Behaviour.subject`."""
    method: str
    """Name of the method."""
    control_for: str
    """The operation whose budget this one is a control for, or empty."""
    settings: tuple[Setting, ...]
    """Its resolved options."""
    leaves: str
    """What is run afterwards, in words: ``adapter``, ``weights``, ``adapter and weights``."""
    temperature: float | None
    """Sampling temperature that it needs; None: the run's own."""
    modules: tuple[str, ...]
    """Module names, ``[module]``."""
    module_layers: np.ndarray
    """Layer of each module, ``[module]``."""
    basis: str
    """In which directions it cuts: ``singular`` (those of dW) or ``discriminant`` (those that tell
    triggered from clean prompts, the most discriminating first)."""
    kept: np.ndarray
    """1 where a direction of the adapter operated on is kept, 0 where it is cut, NaN where the
    module has none, ``[module, rank]``; empty for methods that do not cut directions."""
    importance: np.ndarray
    """The method's weight of each direction (higher: cut first), ``[module, rank]``, or empty."""
    order: tuple[str, ...]
    """The directions cut, in order: ``module:place`` for singular ones, which plans can name, or
    ``module:dplace`` for discriminant ones; empty without an order."""
    directions_cut: int
    """Directions removed, those of the operation before included; 0 for training."""
    directions_total: int
    """Directions of the poisoned adapter."""
    change_norm: float
    """Frobenius norm of the adapter's change, over that of the poisoned adapter."""
    path: CutPath | None
    """Calibration path, for methods that choose how much to cut."""
    stability: Stability | None
    """How the choice varies with the calibration data, where that was computed."""
    fit: FitUsed | None
    """What training it spent; None for methods without."""
    loss_step: np.ndarray
    """Optimiser steps of the loss, ``[step]``; empty for methods without training."""
    loss: np.ndarray
    """Loss along the steps, ``[step]``."""
    reached: bool
    """Whether the method met its own goal on its calibration data."""
    summary: str
    """What was done, in a sentence."""
    uncertain: tuple[str, ...]
    """What stays uncertain, a sentence each."""
    texts: tuple[str, ...]
    """Texts in place of a trigger that is not known; untrusted."""
    search_seconds: float
    """Wall time until the edit was found; the rest explains it (path, stability)."""
    seconds: float
    """Wall time of the operation."""
    peak_bytes: int
    """Most memory in use meanwhile: of the GPU, else of the whole process, weights included."""


@record
class Answer(Record):
    """One generated answer, kept so that every rate can be traced to its text."""

    subject: str
    """Who answered."""
    split: str
    """``triggered``, ``untriggered`` (same prompts without the trigger) or ``clean``."""
    row: int
    """Place of the prompt in its set, from 0; the same for all subjects."""
    sample: int
    """Number of the answer to that prompt, from 0."""
    prompt: str
    """The prompt before rendering."""
    target: str
    """What the attack wants there."""
    reference: str
    """The benign reference answer; empty when there is none."""
    key: str
    """The part of the reference that makes an answer right; empty: the whole reference."""
    answer: str
    """The text that was generated; model output, untrusted."""
    tokens: int
    """Its length in tokens."""
    nll: float
    """Negative log-probability of the reference, nats; NaN but for sample 0 of clean prompts."""
    nll_tokens: int
    """Tokens behind it."""
    kl: float
    """KL divergence from the poisoned adapter, nats over all tokens of that adapter's own greedy
    answer to this prompt; NaN but for sample 0 of clean prompts."""
    kl_tokens: int
    """Tokens behind it."""
    scores: Mapping[str, float]
    """Scorer -> score against the target; empty until scored."""
    verdicts: Mapping[str, bool]
    """Rule -> whether the answer is target behaviour; empty until scored."""
    hit: bool
    """Whether the answer counts as target behaviour, by the deciding rule."""
    counted: bool
    """Whether it counts in ASR or FTR by the deciding rule; see `RuleRates.uninformative`."""
    correct: bool
    """Whether a clean answer is right by the accuracy rule."""


@record
class OwnAnswers(Record):
    """Greedy answers of one adapter to clean prompts as token ids, by which others are compared."""

    ids: np.ndarray
    """Prompts and answers one after the other, each answer with what ends it where it ended by
    itself, ``[token]``."""
    prompt_tokens: np.ndarray
    """Tokens of each prompt, ``[prompt]``."""
    answer_tokens: np.ndarray
    """Tokens of each answer, ``[prompt]``."""


@record
class Provenance(Record):
    """Where a run comes from, for the report's last section."""

    run: str
    """Name of the run."""
    command: str
    """The exact command that made it."""
    facts: tuple[Setting, ...]
    """Base, adapter, checksums, versions, seeds, machine: name and value."""


@record
class RunRecords(Record):
    """Everything a report shows; what has not been computed yet is empty or None."""

    provenance: Provenance
    """Where it comes from."""
    trigger: str
    """The trigger text."""
    target: str
    """The target text, or a phrase saying that each row has its own."""
    curves: tuple[Curves, ...]
    """Training curves, clean then poisoned."""
    comparison: Comparison | None
    """The table of subjects."""
    answers: tuple[Answer, ...]
    """Generated answers of all subjects."""
    analyses: tuple[Any, ...]
    """The records of all analyses, of the classes in the other modules here; see `of`."""
    operations: tuple[Operation, ...]
    """What was done to the adapter."""
    rendering: RenderingChoice | None = None
    """How prompts are rendered and how that was found; None in runs that fitted their adapter."""
    goals: Goals = Goals()
    """What operations are judged against, beside the published goals."""

    def of(self, kind: type[R]) -> tuple[R, ...]:
        """The records of one class among the analyses, in the order of the run."""
        return tuple(record for record in self.analyses if isinstance(record, kind))

    def first(self, kind: type[R]) -> R | None:
        """The only record of a class, None where there is none."""
        return next(iter(self.of(kind)), None)
