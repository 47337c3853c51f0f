"""What every analysis is: a name, what it needs, its cost, a function from material to records."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..core.config import Config
from ..core.registry import Registry
from .material import Material

F = TypeVar("F", bound=Callable[..., Any])
TRIGGER, CLEAN_ADAPTER, CLEAN_ROWS = "trigger", "clean adapter", "clean prompts"
"""What an analysis may need besides base and adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """One question about a material, and how it is answered."""

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
    """Analyses whose records it reads where they exist."""
    families: tuple[str, ...] = ()
    """Model types that it is for; empty: all."""
    run: Callable[[Material, Any], Mapping[str, Any]]
    """Material and config to records by file name."""


ANALYSES: Registry[Analysis] = Registry("analysis")


def analysis(
    name: str,
    *,
    about: str,
    needs: tuple[str, ...] = (),
    cost: str = "unknown",
    source: str = "your own",
    config: type[Config] = Config,
    combines: tuple[str, ...] = (),
    families: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """A decorator that registers a function as an analysis.

    The function takes what it may look at (`Material`) and its options (`config`), and returns one
    record, or several by name.

    Args:
        name: by which `probe` and the command line know it.
        about: what it answers, in a line.
        needs: of ``trigger``, ``clean adapter``, ``clean prompts``.
        cost: what it takes, in words.
        source: paper or work that it comes from.
        config: its options.
        combines: analyses whose records it reads where they exist.
        families: model types that it is for; empty: all.
    """

    def put(function: F) -> F:
        @functools.wraps(function)
        def run(material: Material, options: Any) -> Mapping[str, Any]:
            found = function(material, options)
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
