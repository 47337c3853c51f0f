"""What every method is: a name, a frozen config, a function from material to a new adapter."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from ..analysis.localisation.gates import Directions, directions_of
from ..analysis.material import Material
from ..core.adapter.algebra import adapter_norm, norm, stack
from ..core.adapter.factors import Adapter, layer_of
from ..core.config import Config
from ..core.errors import LoratomyError
from ..core.memory import peak_memory
from ..core.model.batches import encode
from ..core.model.precision import fast_dtype, number_format
from ..core.model.variant import Treated
from ..core.records.io import jsonable
from ..core.records.results import CutPath, FitUsed, Operation, Setting, Stability
from ..core.registry import Registry
from ..core.rows import Row
from .budget import Budget

F = TypeVar("F", bound=Callable[..., Any])
TRIGGER, TARGET, CLEAN_ADAPTER, CLEAN_ROWS, GRADIENTS = (
    "trigger",
    "target",
    "clean adapter",
    "clean rows",
    "gradients",
)
"""What a method may need besides base and adapter: triggered prompts, what the attack wants on
them, a clean adapter on the same base, clean prompts with answers, a backward pass."""
NEEDS = (TRIGGER, TARGET, CLEAN_ADAPTER, CLEAN_ROWS, GRADIENTS)

CUT, TRAINED, BASELINE, CONTROL = "cut", "trained", "baseline", "control"
KINDS = (CUT, TRAINED, BASELINE, CONTROL)
"""Kinds of methods: edits of the weights, fits, ways of running the model, yardsticks."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method gives back; `operate` makes the record of it."""

    adapter: Adapter | None
    """The new adapter; None where it is merged into `weights`."""
    summary: str
    """What was done, in a sentence."""
    weights: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Base weights that are replaced, by module name; see `core.model.variant`."""
    temperature: float | None = None
    """Sampling temperature instead of the run's."""
    directions: Directions | None = None
    """The form in which directions were cut, where it is not the singular one."""
    rows: Sequence[Row] = ()
    """Triggered rows that the method made itself, where no trigger is known; kept with the
    operation, so that others can go on from them."""
    texts: tuple[str, ...] = ()
    """The texts in them."""
    cut: np.ndarray | None = None
    """True where a direction of the poisoned adapter was removed, ``[direction]``."""
    importance: np.ndarray | None = None
    """The method's own weight of each direction, ``[direction]``."""
    order: np.ndarray | None = None
    """Numbers of the directions in the order in which they are cut, ``[direction]``."""
    projected: int = 0
    """Directions removed that are not singular directions of the poisoned adapter."""
    path: CutPath | None = None
    """Calibration path."""
    stability: Stability | None = None
    """The choice on other draws of the calibration data."""
    fit: FitUsed | None = None
    """What training it spent, for trained methods (see `trained.fit.used`)."""
    loss_step: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Optimiser steps of the loss."""
    loss: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Loss along them."""
    reached: bool = True
    """Whether the method met its own goal on its calibration data."""
    judged: bool = False
    """Whether it was chosen by answers without a path that shows them."""
    uncertain: tuple[str, ...] = ()
    """What stays uncertain, a sentence each."""
    explained_seconds: float = 0.0
    """Wall time after the edit was found, of what explains it."""
    earlier_seconds: float = 0.0
    """Wall time of what an earlier process did of it before it was stopped."""

    @property
    def treated(self) -> Treated:
        """What is run afterwards."""
        return Treated(self.adapter, self.weights, self.temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to change an adapter."""

    about: str
    """What it does, in a line for `--help`."""
    source: str
    """Paper or work that it comes from."""
    config: type[Config]
    """Its options."""
    run: Callable[[Material, Any], Outcome]
    """Material and config to outcome."""
    kind: str
    """`CUT`, `TRAINED`, `BASELINE` or `CONTROL`."""
    needs: tuple[str, ...] = ()
    """Of `NEEDS`."""
    settled_by: tuple[str, ...] = ()
    """Options any of which, once given, settles the edit: then nothing is calibrated."""
    still: tuple[str, ...] = ()
    """What it needs all the same once that is given, of `NEEDS`."""


METHODS: Registry[Method] = Registry("method")


def method(
    name: str,
    *,
    about: str,
    kind: str = CUT,
    needs: tuple[str, ...] = (),
    source: str = "your own",
    config: type[Config] = Config,
    settled_by: tuple[str, ...] = (),
    still: tuple[str, ...] = (),
) -> Callable[[F], F]:
    """A decorator that registers a function as a method.

    The function takes what it may look at (`Material`) and its options (`config`), and returns an
    `Outcome`, or the new adapter alone.

    Args:
        name: by which `operate` and the command line know it.
        about: what it does, in a line.
        kind: ``cut``, ``trained``, ``baseline`` or ``control``.
        needs: of `NEEDS`.
        source: paper or work that it comes from.
        config: its options.
        settled_by: options any of which, once given, settles the edit without calibration.
        still: what it needs all the same then.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} of the method {name!r} is none of {', '.join(KINDS)}")

    def put(function: F) -> F:
        @functools.wraps(function)
        def run(material: Material, options: Any) -> Outcome:
            found = function(material, options)
            return found if isinstance(found, Outcome) else Outcome(found, about)

        METHODS.register(name)(
            Method(
                about=about,
                source=source,
                config=config,
                run=run,
                kind=kind,
                needs=needs,
                settled_by=settled_by,
                still=still,
            )
        )
        return function

    return put


def settled(method: Method, config: Config) -> bool:
    """Whether options of `Method.settled_by` are given, so that nothing is calibrated."""
    return any(getattr(config, option) is not None for option in method.settled_by)


def needed(method: Method, config: Config | None = None) -> tuple[str, ...]:
    """What a method needs with these options, of `NEEDS`; None: with its defaults."""
    if config is not None and settled(method, config):
        return method.still
    return method.needs


def lacking(
    method: Method,
    config: Config | None = None,
    /,
    *,
    trigger: bool,
    target: bool,
    clean_adapter: bool,
) -> list[str]:
    """What a method needs and a run does not have, of `NEEDS`.

    Args:
        method: the method.
        config: its options; None: its defaults.
        trigger: whether triggered prompts are known.
        target: whether it is known what they lead to.
        clean_adapter: whether there is a clean adapter.
    """
    has = {TRIGGER: trigger, TARGET: target, CLEAN_ADAPTER: clean_adapter}
    return [need for need in needed(method, config) if not has.get(need, True)]


def possible(**has: bool) -> list[str]:
    """The methods that need nothing a run lacks, by name; arguments as of `lacking`."""
    return [n for n, m in METHODS.items() if m.kind != CONTROL and not lacking(m, **has)]


def check_needs(name: str, config: Config | None = None, /, **has: bool) -> None:
    """Raise where a method needs what a run does not have; arguments as of `lacking`.

    Raises:
        LoratomyError: names what is missing, how to give it, and which methods would do.
    """
    if missing := lacking(METHODS[name], config, **has):
        options = {TRIGGER: "--trigger", TARGET: "--target", CLEAN_ADAPTER: "--clean-adapter"}
        give = ", ".join(options[need] for need in missing)
        look = (
            "; loratomy probe RUN --only candidates looks for one, guided-unknown and then repair "
            "--after guided-unknown need none"
        ) * (TRIGGER in missing)
        would = possible(**has)
        settled_alone = [
            f"{n} with {' or '.join(m.settled_by)}"
            for n, m in METHODS.items()
            if m.settled_by
            and n not in would
            and (has["clean_adapter"] or CLEAN_ADAPTER not in m.needs)
        ]
        raise LoratomyError(
            f"{name} needs a {' and a '.join(missing)} and the run has none (loratomy open with "
            f"{give}{look}); without it these would do: {', '.join([*would, *settled_alone])}"
        )


def operate(
    name: str,
    material: Material,
    config: Config,
    *,
    subject: str | None = None,
    control_for: str = "",
    before: Operation | None = None,
) -> tuple[Outcome, Operation]:
    """What the method gave back, and the record of what was done.

    Args:
        name: of the method.
        material: what it may look at.
        config: its options.
        subject: name of the operation in the run; None: the method's.
        control_for: the operation whose budget it shares.
        before: the operation that `material.start` comes from; its cut is still a cut.

    Raises:
        LoratomyError: unknown method, or one that needs what the material does not have.
    """
    method = METHODS[name]
    check_needs(
        name,
        config,
        trigger=bool(material.made_rows or material.triggered),
        target=any(row.completion for row in material.triggered),
        clean_adapter=material.clean is not None,
    )
    check_finite(material)
    began = time.perf_counter()
    with peak_memory(material.subject.device) as peak:
        outcome = method.run(material, config)
    seconds = time.perf_counter() - began + outcome.earlier_seconds
    return outcome, Operation(
        subject=subject or name,
        method=name,
        control_for=control_for,
        settings=tuple(
            Setting(name=k, value=_written(getattr(config, k), v))
            for k, v in config.model_dump().items()
        ),
        leaves=_leaves(outcome),
        temperature=outcome.temperature,
        change_norm=_change(material, outcome),
        path=outcome.path,
        stability=outcome.stability,
        fit=outcome.fit,
        loss_step=outcome.loss_step,
        loss=outcome.loss,
        reached=outcome.reached,
        summary=outcome.summary,
        uncertain=(*outcome.uncertain, *_precision(material, outcome)),
        texts=outcome.texts,
        search_seconds=seconds - outcome.explained_seconds,
        seconds=seconds,
        peak_bytes=peak.bytes,
        **_directions(material, outcome, before),
    )


def _precision(material: Material, outcome: Outcome) -> tuple[str, ...]:
    """In which number format it was fitted or calibrated, where that is not the base's own."""
    subject = material.subject
    if fast_dtype(subject) is None or not (len(outcome.loss) or outcome.path or outcome.judged):
        return ()
    line = f"Made in {number_format(subject)}; held-out figures are measured in {subject.dtype}."
    return (line,)


def _written(option: Any, dumped: Any) -> str:
    """An option's value as text."""
    return str(option) if isinstance(option, Budget) else str(jsonable(dumped))


def _directions(material: Material, outcome: Outcome, before: Operation | None) -> dict[str, Any]:
    """The fields of the record about singular directions."""
    cut = outcome.cut
    d = outcome.directions or directions_of(material.poisoned if cut is None else material.start)
    kept = _table(d, None if cut is None else (~cut).astype(float))
    importance = _table(d, outcome.importance)
    removed = outcome.projected + (0 if cut is None else int(cut.sum()))
    basis = "singular" if outcome.directions is None else "discriminant"
    if before is not None:
        removed += before.directions_cut
        if cut is None:
            basis, kept, importance = before.basis, before.kept, before.importance
    order = outcome.order if outcome.order is not None and cut is not None else ()
    mark = "" if outcome.directions is None else "d"
    return {
        "basis": basis,
        "modules": tuple(d.names),
        "module_layers": np.array([layer_of(n) for n in d.names]),
        "kept": kept,
        "importance": importance,
        "order": tuple(d.label(i, mark) for i in order if cut is not None and cut[i]),
        "directions_cut": removed,
        "directions_total": len(d if before is None else directions_of(material.poisoned)),
    }


def _table(directions: Directions, values: np.ndarray | None) -> np.ndarray:
    return np.zeros((0, 0)) if values is None else directions.table(values)


def _leaves(outcome: Outcome) -> str:
    parts = ["adapter"] * (outcome.adapter is not None) + ["weights"] * bool(outcome.weights)
    return " and ".join(parts)


def changes(material: Material, outcome: Outcome) -> dict[str, float]:
    """Squared Frobenius norm of the change of each merged weight, by module.

    Against the poisoned adapter on the base; modules that neither adapts are left out.
    """
    from ..core.model.variant import base_weight

    after = outcome.adapter.modules if outcome.adapter is not None else {}
    squared = {}
    for name in {**material.poisoned.modules, **after, **outcome.weights}:
        old, new = material.poisoned.modules.get(name), after.get(name)
        if name in outcome.weights:
            moved = outcome.weights[name].double().cpu() - base_weight(material.subject, name).cpu()
            moved = moved + (0 if new is None else new.dense().double())
            moved = moved - (0 if old is None else old.dense().double())
            squared[name] = float(moved.square().sum())
        elif old is not None and new is not None:
            squared[name] = float(norm(stack(new, old)).square().sum())
        elif (alone := old or new) is not None:
            squared[name] = float(norm(alone).square().sum())
    return squared


def check_finite(material: Material) -> None:
    """Raise where the model's answers under the adapter to operate on are not numbers.

    A normalisation whose sum of squares overflows gives zeros, and so equal logits.

    Raises:
        LoratomyError: a logit is NaN or infinite, or all of them are equal.
    """
    subject = material.subject
    rows = [row for row in (*material.triggered[:1], *material.clean_rows[:1]) if row.completion]
    with subject.attached({"start": material.start}), torch.inference_mode():
        for row in rows:
            prompt = encode(subject.renderer, row, limit=None).prompt[: subject.limit]
            ids = torch.tensor([prompt], device=subject.device)
            logits = subject.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
            if not torch.isfinite(logits).all() or bool(logits.max() == logits.min()):
                raise LoratomyError(
                    "with the adapter the model's logits are NaN or infinite, or all equal, so "
                    "that no operation on it can be measured; are its weights of a size that makes "
                    "sense? (loratomy open says how large they are)"
                )


def _change(material: Material, outcome: Outcome) -> float:
    """Frobenius norm of the change of the merged weights, over that of the poisoned dW."""
    return sum(changes(material, outcome).values()) ** 0.5 / adapter_norm(material.poisoned)
