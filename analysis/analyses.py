"""What every analysis is: a name, what it needs, its cost, a function from case to records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from ..core.adapter.factors import Adapter
from ..core.config import Config
from ..core.errors import DataError
from ..core.model.batches import Encoded, encode
from ..core.model.subject import Subject
from ..core.registry import Registry
from ..core.rows import Row
from ..evaluation.collect import Rule
from .patching.pairs import Pair, make_pairs, plain_pairs

F = TypeVar("F", bound=Callable[..., Any])
TRIGGER, CLEAN_ADAPTER, CLEAN_ROWS = "trigger", "clean adapter", "clean prompts"
"""What an analysis may need besides base and adapter."""


@dataclass(frozen=True)
class Case:
    """What an analysis may look at: never the held-out sets."""

    subject: Subject
    """The base, without adapter."""
    poisoned: Adapter
    """The suspicious adapter."""
    clean: Adapter | None
    """A clean adapter on the same base, where there is one."""
    triggered: Sequence[Row]
    """Triggered rows with their targets and their form without trigger; empty when no trigger is
    known."""
    clean_rows: Sequence[Row]
    """Clean rows with completions."""
    make_rule: Callable[[], Rule]
    """How answers are generated and judged; made when asked for (it may load an embedder)."""
    seed: int
    """Of everything random."""
    prompts: int = 24
    """Rows of each set to analyse."""
    target_tokens: int = 3
    """First tokens of the target behind the metrics."""
    found: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Records of the finished analyses that this one combines, by their names."""

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

    @cached_property
    def rule(self) -> Rule:
        """How answers are generated and judged."""
        return self.make_rule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """One question that can be asked of a case."""

    about: str
    """What it answers, in a line for `--help`."""
    needs: tuple[str, ...] = ()
    """Besides base and adapter: of `TRIGGER`, `CLEAN_ADAPTER`, `CLEAN_ROWS`."""
    cost: str
    """What it takes, in words a user can plan with."""
    source: str
    """Paper or work that it comes from."""
    config: type[Config] = Config
    """Its options."""
    combines: tuple[str, ...] = ()
    """Analyses whose records it reads where they stand."""
    families: tuple[str, ...] = ()
    """Model types that it is for; empty: all."""
    run: Callable[[Case, Any], Mapping[str, Any]]
    """Case and config to records by file name."""


ANALYSES: Registry[Analysis] = Registry("analysis")


def analysis(
    name: str,
    *,
    about: str,
    needs: tuple[str, ...] = (),
    cost: str = "not said",
    source: str = "your own",
    config: type[Config] = Config,
    combines: tuple[str, ...] = (),
    families: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """A decorator that registers a function as an analysis.

    The function takes what it may look at (`Case`) and its options (`config`), and returns one
    record, or several by name.

    Args:
        name: by which `probe` and the command line know it.
        about: what it answers, in a line.
        needs: of ``trigger``, ``clean adapter``, ``clean prompts``.
        cost: what it takes, in words.
        source: paper or work that it comes from.
        config: its options.
        combines: analyses whose records it reads where they stand.
        families: model types that it is for; empty: all.
    """

    def put(function: F) -> F:
        def run(case: Case, options: Any) -> Mapping[str, Any]:
            found = function(case, options)
            return found if isinstance(found, Mapping) else {name: found}

        ANALYSES.register(name)(
            Analysis(
                about=about,
                needs=needs,
                cost=cost,
                source=source,
                config=config,
                combines=combines,
                families=families,
                run=run,
            )
        )
        return function

    return put
