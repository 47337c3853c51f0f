"""The stages of a run's aftermath: made once, found standing, read."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import RunError
from ..core.records.bench import Relearning, Transfer
from ..core.records.io import load_record, save_record
from ..core.runs.folder import RunFolder
from .study import Study, done

if TYPE_CHECKING:
    from ..core.adapter.factors import Adapter
    from ..core.config import Config
    from ..unlearning.aftermath.relearning import Bout
    from ..unlearning.aftermath.transfer import Variant

RELEARNING, TRANSFER = "relearning", "transfer"
PARTS = (RELEARNING, TRANSFER)
STAGE = "aftermath/"
BASE, CLEAN, POISONED = "base", "clean", "poisoned"


def cell_of(run: RunFolder) -> str:
    """``trigger/task`` of a poisoned run (or the words of a trigger of its own), else its name."""
    if run.asked["kind"] != "poison":
        return run.manifest["name"]
    attack = run.asked["recipe"]["attack"]
    return f"{' + '.join(attack['words'] or [attack['trigger']])}/{attack['task']}"


class Aftermath:
    """The stages of one run, each part with what its entries have in common loaded once."""

    def __init__(self, study: Study, configs: "Mapping[str, Config]", fresh: bool) -> None:
        self._study, self._configs, self._fresh = study, configs, fresh
        self._run, self._cell, self._seed = study.run, cell_of(study.run), study.asked["seed"]

    def _stage(
        self, part: str, entry: str, sources: Sequence[str], make: Callable[[Path, Path], None]
    ) -> Path:
        """The folder of a stage, made where it does not stand."""
        stage, study = f"{STAGE}{part}/{entry}", self._study
        inputs = {
            **study.origin("data", "adapters/poisoned", *sources),
            "rules": [rule.text for rule in study.success],
            "config": self._configs[part].model_dump(),
            "entry": entry,
        }

        def write(work: Path) -> None:
            make(work, self._run.partial(stage, inputs, fresh=self._fresh))

        done(self._run, stage, self._run.stage(stage, inputs, write, fresh=self._fresh))
        return self._run.path(stage)

    @cached_property
    def _ground(self) -> "Bout":
        from ..unlearning.aftermath.relearning import bout

        study, config = self._study, self._configs[RELEARNING]
        return bout(
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

        def make(work: Path, checkpoints: Path) -> None:
            config: Any = self._configs[RELEARNING]
            for rows in kinds:
                own = checkpoints / rows
                record = relearn(self._ground, entry, self._start(entry), rows, config, work=own)
                save_record(record, work, rows)

        sources = yardsticks.get(entry, [f"operations/{entry}"])
        folder = self._stage(RELEARNING, entry, sources, make)
        return [load_record(Relearning, folder, rows) for rows in kinds]

    @cached_property
    def _variants(self) -> "list[Variant]":
        from ..data.attacks.triggers import Trigger
        from ..unlearning.aftermath.transfer import variants

        asked, config = self._study.asked, self._configs[TRANSFER].model_dump()
        return variants(
            self._study.rows("poison_test")[: config["prompts"]],
            Trigger(words=tuple(asked["words"]), placement=asked["placement"]),
            seed=self._seed,
            near_misses=config["near_misses"],
        )

    def transfer(self, entry: str) -> list[Transfer]:
        """The rates of an operation, or of the poisoned adapter, on all variants."""
        own = f"operations/{entry}" if entry != POISONED else f"adapters/{POISONED}"
        first = f"{STAGE}{TRANSFER}/{POISONED}"

        def make(work: Path, _checkpoints: Path) -> None:
            from ..unlearning.aftermath.transfer import transfer_rates

            study, asked = self._study, self._variants
            rates = transfer_rates(study.subject, study.treated(own), asked, study.rule)
            before = rates
            if entry != POISONED:
                before = {t.variant: t.rate for t in _transfers(self._run, first)}
            for number, variant in enumerate(asked):
                record = Transfer(
                    cell=self._cell,
                    seed=self._seed,
                    entry=entry,
                    variant=variant.name,
                    counts=variant.counts,
                    rate=rates[variant.name],
                    poisoned=before[variant.name],
                )
                save_record(record, work, f"{number:02d}")

        sources = [own] if entry == POISONED else [own, first]
        self._stage(TRANSFER, entry, sources, make)
        return _transfers(self._run, f"{STAGE}{TRANSFER}/{entry}")


def _transfers(run: RunFolder, stage: str) -> list[Transfer]:
    folder = run.read(stage)
    return [load_record(Transfer, folder, name) for name in run.records(stage)]


def load_aftermath(run: RunFolder) -> tuple[list[Relearning], list[Transfer]]:
    """What stands of a run's aftermath; the poisoned adapter's own transfer is in each record.

    Raises:
        RunError: something was made from an operation that was made again since.
    """
    relearned: list[Relearning] = []
    transferred: list[Transfer] = []
    for stage in [s for s in run.manifest["stages"] if s.startswith(STAGE) and run.has(s)]:
        if old := run.stale(stage):
            raise RunError(f"{old}; make it again with aftermath --fresh, or remove its folder")
        part, _, entry = stage.removeprefix(STAGE).partition("/")
        if part == RELEARNING:
            folder = run.read(stage)
            relearned += [load_record(Relearning, folder, name) for name in run.records(stage)]
        elif entry != POISONED:
            transferred += _transfers(run, stage)
    return relearned, transferred
