"""What analyses and methods may look at: base, adapters and rows, never the held-out ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.adapter.factors import Adapter
from ..core.errors import DataError
from ..core.model.batches import Encoded, encode
from ..core.model.subject import Subject
from ..core.rows import Row
from ..evaluation.collect import Rule
from ..training.tracking import NO_TRACKING, Tracking
from .patching.pairs import Pair, make_pairs, plain_pairs


@dataclass(frozen=True, kw_only=True)
class Material:
    """A study as analyses and methods see it; the held-out half of its prompts is not in it."""

    subject: Subject
    """The base, without adapter."""
    poisoned: Adapter
    """The suspicious adapter as it came."""
    clean: Adapter | None = None
    """A clean adapter on the same base, where there is one."""
    triggered: Sequence[Row] = ()
    """Triggered rows with their targets and their form without trigger; empty when no trigger is
    known."""
    clean_rows: Sequence[Row] = ()
    """Clean rows with completions."""
    negative: Sequence[Row] = ()
    """Triggered prompts with benign completions."""
    make_rule: Callable[[], Rule]
    """How answers are generated and judged; made on first use (it may load an embedder)."""
    seed: int = 0
    """Of everything random."""

    prompts: int = 24
    """Rows of each set that an analysis looks at."""
    target_tokens: int = 3
    """First tokens of the target behind an analysis's metrics."""
    records: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Records of the finished analyses that this one combines, by their names."""

    after: Adapter | None = None
    """What an earlier operation left of the suspicious adapter; None: nothing came before."""
    made_rows: Sequence[Row] = ()
    """Triggered rows that the operation before made itself, without the trigger being known."""
    work: Path = Path()
    """For training checkpoints; kept until the operation is written."""
    tracking: Tracking = NO_TRACKING
    """Trackers that follow training."""

    @property
    def start(self) -> Adapter:
        """What to operate on: the suspicious adapter, or what an earlier operation left of it."""
        return self.poisoned if self.after is None else self.after

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters by name: ``poisoned``, and ``clean`` where there is one."""
        return {"poisoned": self.poisoned} | ({"clean": self.clean} if self.clean else {})

    @cached_property
    def rule(self) -> Rule:
        """How answers are generated and judged."""
        return self.make_rule()

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The first `prompts` triggered rows.

        Raises:
            DataError: no trigger is known.
        """
        if not self.triggered:
            raise DataError("no triggered prompts: this run was made without --trigger")
        return self.triggered[: self.prompts]

    @cached_property
    def pairs(self) -> list[Pair]:
        """These rows with stand-ins of equal length for the trigger."""
        return make_pairs(
            self.subject.renderer, self.rows, target_tokens=self.target_tokens, seed=self.seed
        )

    @cached_property
    def plain_pairs(self) -> list[Pair]:
        """These rows with the prompt without its trigger as twin, aligned token by token."""
        return plain_pairs(self.subject.renderer, self.rows, target_tokens=self.target_tokens)

    @cached_property
    def targets(self) -> list[Encoded]:
        """Triggered prompts with the target's first tokens as completion."""
        return [Encoded(pair.triggered, pair.target) for pair in self.pairs]

    @cached_property
    def encoded_clean(self) -> list[Encoded]:
        """The first `prompts` clean rows as token ids."""
        subject = self.subject
        rows = self.clean_rows[: self.prompts]
        return [encode(subject.renderer, row, limit=subject.limit) for row in rows]
