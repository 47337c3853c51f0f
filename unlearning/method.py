"""What every method is: a name, a frozen config, and a function from a bench to a new adapter."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.asking import Rule
from ..analysis.gates import Directions, directions_of
from ..core.adapters import Adapter, layer_of
from ..core.algebra import adapter_distance, adapter_norm
from ..core.config import Config
from ..core.errors import LoratomyError
from ..core.records import jsonable
from ..core.registry import Registry
from ..core.results import CutPath, Operation, Setting
from ..core.rows import Row
from ..core.subject import Subject


@dataclass(frozen=True, slots=True)
class Bench:
    """What a method may look at: never the held-out sets."""

    subject: Subject
    """The base, without adapter."""
    poisoned: Adapter
    """The suspicious adapter as it came."""
    start: Adapter
    """What to operate on: the same, or what an earlier operation left of it."""
    clean: Adapter | None
    """A clean adapter on the same base, where there is one."""
    clean_train: Sequence[Row]
    """Clean rows with completions."""
    poison_train: Sequence[Row]
    """Triggered rows with their targets and their form without trigger."""
    negative: Sequence[Row]
    """Triggered prompts with benign completions."""
    rule: Rule
    """How calibration judges answers."""
    seed: int
    """Of everything random in the method."""
    work: Path
    """For training checkpoints; kept until the operation is written."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method gives back; `operate` makes the record of it."""

    adapter: Adapter
    """The new adapter."""
    summary: str
    """What was done, in a sentence."""
    cut: np.ndarray | None = None
    """True where a direction of the poisoned adapter was removed, ``[direction]``."""
    importance: np.ndarray | None = None
    """The method's own weight of each direction, ``[direction]``."""
    projected: int = 0
    """Directions removed that are not singular directions of the poisoned adapter."""
    path: CutPath | None = None
    """Calibration path."""
    loss_step: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Optimiser steps of the loss."""
    loss: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Loss along them."""
    reached: bool = True
    """Whether the method met its own goal on its calibration data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to change an adapter."""

    about: str
    """What it does, in a line for `--help`."""
    source: str
    """Paper or work that it comes from."""
    config: type[Config]
    """Its options."""
    run: Callable[[Bench, Any], Outcome]
    """Bench and config to outcome."""
    needs_clean_adapter: bool = False
    """Whether it compares with a clean adapter."""


METHODS: Registry[Method] = Registry("method")


def operate(
    name: str,
    bench: Bench,
    config: Config,
    *,
    subject: str | None = None,
    control_for: str = "",
    before: Operation | None = None,
) -> tuple[Adapter, Operation]:
    """The operated adapter and the record of what was done.

    Args:
        name: of the method.
        bench: what it may look at.
        config: its options.
        subject: name of the operation in the run; None: the method's.
        control_for: the operation whose budget it shares.
        before: the operation that `bench.start` comes from; its cut is still a cut.

    Raises:
        LoratomyError: unknown method, or one that needs a clean adapter where there is none.
    """
    method = METHODS[name]
    if method.needs_clean_adapter and bench.clean is None:
        raise LoratomyError(
            f"{name} compares with a clean adapter and the run has none; give one with "
            "loratomy open --clean-adapter, or use another method"
        )
    began = time.perf_counter()
    outcome = method.run(bench, config)
    seconds = time.perf_counter() - began
    cut = outcome.cut
    directions = directions_of(bench.poisoned if cut is None else bench.start)
    kept = _table(directions, None if cut is None else (~cut).astype(float))
    importance = _table(directions, outcome.importance)
    removed = outcome.projected + (0 if cut is None else int(cut.sum()))
    if before is not None:
        removed += before.directions_cut
        if cut is None:
            kept, importance = before.kept, before.importance
    return outcome.adapter, Operation(
        subject=subject or name,
        method=name,
        control_for=control_for,
        settings=tuple(
            Setting(name=k, value=str(jsonable(v))) for k, v in config.model_dump().items()
        ),
        modules=tuple(directions.names),
        module_layers=np.array([layer_of(n) for n in directions.names]),
        kept=kept,
        importance=importance,
        directions_cut=removed,
        directions_total=len(directions if before is None else directions_of(bench.poisoned)),
        change_norm=_change(bench.poisoned, outcome.adapter),
        path=outcome.path,
        loss_step=outcome.loss_step,
        loss=outcome.loss,
        reached=outcome.reached,
        summary=outcome.summary,
        seconds=seconds,
    )


def _table(directions: Directions, values: np.ndarray | None) -> np.ndarray:
    return np.zeros((0, 0)) if values is None else directions.table(values)


def _change(before: Adapter, after: Adapter) -> float:
    return adapter_distance(before, after) / adapter_norm(before)
