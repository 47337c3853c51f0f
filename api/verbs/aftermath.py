"""The aftermath of a study's operations: relearning and transfer, made once, found standing."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import progress, say
from ..core.errors import LoratomyError, RunError
from ..core.records.bench import Relearning, Transfer
from ..core.registry import nearest
from ..core.runs.run import Run
from ..core.runs.shelf import Shelf
from ..study import Study
from .stages import done

if TYPE_CHECKING:
    from ..core.adapter.factors import Adapter
    from ..core.config import Config
    from ..unlearning.aftermath.relearning import RelearningSetup
    from ..unlearning.aftermath.transfer import Variant

RELEARNING, TRANSFER = "relearning", "transfer"
PARTS = (RELEARNING, TRANSFER)
STAGE = "aftermath/"
BASE, CLEAN, POISONED = "base", "clean", "poisoned"


def cell_of(run: Run) -> str:
    """``trigger/task`` of a poisoned run (or the words of a trigger of its own), else its name."""
    if run.request["kind"] != "poison":
        return run.manifest["name"]
    attack = run.request["recipe"]["attack"]
    return f"{' + '.join(attack['words'] or [attack['trigger']])}/{attack['task']}"


class Aftermath:
    """The stages of one run, each part with what its entries have in common loaded once."""

    def __init__(self, study: Study, configs: "Mapping[str, Config]", fresh: bool) -> None:
        self._study, self._configs, self._fresh = study, configs, fresh
        self._run, self._cell, self._seed = study.run, cell_of(study.run), study.settings.seed

    def _stage(
        self, part: str, entry: str, sources: Sequence[str], make: Callable[[Shelf, Path], None]
    ) -> Shelf:
        """A stage, made where it does not stand."""
        stage, study = f"{STAGE}{part}/{entry}", self._study
        inputs = {
            **study.origin("data", "adapters/poisoned", *sources),
            "rules": [rule.text for rule in study.success],
            "config": self._configs[part].model_dump(),
            "entry": entry,
        }

        def fill(shelf: Shelf) -> None:
            make(shelf, self._run.partial(stage, inputs, fresh=self._fresh))

        done(self._run, stage, self._run.make(stage, inputs, fill, fresh=self._fresh))
        return self._run.shelf(stage)

    @cached_property
    def _ground(self) -> "RelearningSetup":
        from ..unlearning.aftermath.relearning import relearning_setup

        study, config = self._study, self._configs[RELEARNING]
        return relearning_setup(
            study.subject,
            study.poisoned,
            clean_train=study.rows("clean_train"),
            poison_train=study.rows("poison_train"),
            held_out=study.rows("poison_test"),
            rule=study.rule,
            prompts=config.model_dump()["prompts"],
            cell=self._cell,
            seed=self._seed,
        )

    def _start(self, entry: str) -> "Adapter":
        from ..unlearning.aftermath.relearning import blank

        if entry == BASE:
            return blank(self._study.poisoned, seed=self._seed)
        return self._study.adapter("adapters/clean" if entry == CLEAN else f"operations/{entry}")

    def relearning(self, entry: str) -> list[Relearning]:
        """The curves of an operation on clean and on poisoned rows, of a yardstick on poisoned."""
        from ..unlearning.aftermath.relearning import relearn

        yardsticks: dict[str, list[str]] = {BASE: [], CLEAN: ["adapters/clean"]}
        kinds = [POISONED] if entry in yardsticks else [CLEAN, POISONED]

        def make(shelf: Shelf, checkpoints: Path) -> None:
            config: Any = self._configs[RELEARNING]
            for rows in kinds:
                own = checkpoints / rows
                record = relearn(self._ground, entry, self._start(entry), rows, config, work=own)
                shelf.put(rows, record)

        sources = yardsticks.get(entry, [f"operations/{entry}"])
        shelf = self._stage(RELEARNING, entry, sources, make)
        return [shelf.get(Relearning, rows) for rows in kinds]

    @cached_property
    def _variants(self) -> "list[Variant]":
        from ..data.attacks.triggers import Trigger
        from ..unlearning.aftermath.transfer import variants

        settings, config = self._study.settings, self._configs[TRANSFER].model_dump()
        return variants(
            self._study.rows("poison_test")[: config["prompts"]],
            Trigger(words=settings.words, placement=settings.placement),
            seed=self._seed,
            near_misses=config["near_misses"],
        )

    def transfer(self, entry: str) -> list[Transfer]:
        """The rates of an operation, or of the poisoned adapter, on all variants."""
        own = f"operations/{entry}" if entry != POISONED else f"adapters/{POISONED}"
        first = f"{STAGE}{TRANSFER}/{POISONED}"

        def make(shelf: Shelf, _checkpoints: Path) -> None:
            from ..unlearning.aftermath.transfer import transfer_rates

            study, variants = self._study, self._variants
            rates = transfer_rates(study.subject, study.treated(own), variants, study.rule)
            before = rates
            if entry != POISONED:
                before = {t.variant: t.rate for t in _transfers(self._run, first)}
            for number, variant in enumerate(variants):
                record = Transfer(
                    cell=self._cell,
                    seed=self._seed,
                    entry=entry,
                    variant=variant.name,
                    counts=variant.counts,
                    rate=rates[variant.name],
                    poisoned=before[variant.name],
                )
                shelf.put(f"{number:02d}", record)

        sources = [own] if entry == POISONED else [own, first]
        self._stage(TRANSFER, entry, sources, make)
        return _transfers(self._run, f"{STAGE}{TRANSFER}/{entry}")


def _transfers(run: Run, stage: str) -> list[Transfer]:
    shelf = run.shelf(stage)
    return [shelf.get(Transfer, name) for name in sorted(shelf.names)]


def load_aftermath(run: Run) -> tuple[list[Relearning], list[Transfer]]:
    """A run's finished aftermath; each record holds the poisoned adapter's own transfer too.

    Raises:
        RunError: something was made from an operation that was made again since.
    """
    relearned: list[Relearning] = []
    transferred: list[Transfer] = []
    for stage in [s for s in run.stages if s.startswith(STAGE) and run.has(s)]:
        if old := run.stale(stage):
            raise RunError(f"{old}; make it again with aftermath --fresh, or remove its folder")
        part, _, entry = stage.removeprefix(STAGE).partition("/")
        if part == RELEARNING:
            shelf = run.shelf(stage)
            relearned += [shelf.get(Relearning, name) for name in sorted(shelf.names)]
        elif entry != POISONED:
            transferred += _transfers(run, stage)
    return relearned, transferred


def aftermath(
    study: Study,
    *,
    of: Sequence[str] = (),
    only: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> tuple[list[Relearning], list[Transfer]]:
    """Make the wanted records of a study's aftermath, unless they exist; returns them.

    Args:
        study: whose operations are looked at.
        of: operations; none: all, where those that leave no plain adapter have no relearning.
        only: of `PARTS`; none: both.
        options: ``part.option`` -> value.
        fresh: make it again.

    Raises:
        LoratomyError: an unknown operation, part or option; no operations; an operation named for
            relearning that leaves more than an adapter; one whose input was made again since.
    """
    for part in only:
        if part not in PARTS:
            raise LoratomyError(f"--only {part}: {nearest(part, list(PARTS))}")
    parts = [part for part in PARTS if part in only or not only]
    study.need_trigger("aftermath")
    after = Aftermath(study, _configs(options or {}, parts), fresh)
    entries = _entries(study, of)
    plain = entries
    if RELEARNING in parts:
        plain = [name for name in entries if study.treated(f"operations/{name}").plain]
        for name in entries:
            if name not in plain:
                _no_adapter(name, named=bool(of))
    relearned: list[Relearning] = []
    transferred: list[Transfer] = []
    with study.run.locked(), progress():
        if RELEARNING in parts:
            for name in [BASE, *[CLEAN] * study.run.has("adapters/clean"), *plain]:
                relearned += after.relearning(name)
        if TRANSFER in parts:
            after.transfer(POISONED)
            for name in entries:
                transferred += after.transfer(name)
    return relearned, transferred


def _configs(options: Mapping[str, Any], parts: Sequence[str]) -> "dict[str, Config]":
    """The options of the parts that are made."""
    from ..training.recipe import validated
    from ..unlearning.aftermath.relearning import RelearningConfig
    from ..unlearning.aftermath.transfer import TransferConfig

    given: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for key, value in options.items():
        part, found, option = key.partition(".")
        if not found or part not in parts:
            raise LoratomyError(f"--set {key}: write PART.OPTION=VALUE, of {', '.join(parts)}")
        given[part][option] = value
    kinds: dict[str, Any] = {RELEARNING: RelearningConfig, TRANSFER: TransferConfig}
    return {part: validated(kinds[part], given[part], part) for part in parts}


def _entries(study: Study, of: Sequence[str]) -> list[str]:
    """The operations whose aftermath is wanted."""
    known = study.operations
    if not known:
        raise LoratomyError(
            f"{study.run.root} has no operation yet; make one, e.g. loratomy operate "
            f"{study.run.root} guided"
        )
    for name in of:
        if name not in known:
            raise LoratomyError(f"--of {name}: no such operation; {nearest(name, known)}")
    wanted = [name for name in known if name in of or not of]
    for name in wanted:
        if old := study.run.stale(f"operations/{name}"):
            raise RunError(f"{old}; make it again with operate --fresh, or remove its folder")
    return wanted


def _no_adapter(name: str, *, named: bool) -> None:
    line = f"{name} leaves more than an adapter, and relearning goes on from adapters alone"
    if named:
        raise LoratomyError(f"{line}; leave it out of --of, or give --only {TRANSFER}")
    say(f"{line}: left out of it")
