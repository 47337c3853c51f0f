"""Analyses of a study: each one a stage of its own, made once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..core.console import progress, say
from ..core.errors import LoratomyError, RunError
from ..core.records.io import jsonable
from ..core.runs.provenance import own_code
from ..core.runs.run import Run
from ..core.runs.shelf import Shelf
from ..study import Study
from .stages import done

if TYPE_CHECKING:
    from ..analysis.analyses import Analysis
    from ..analysis.material import Material
    from ..core.config import Config

STAGE = "analysis/"
SIZES = {"prompts": 24, "target_tokens": 3}
"""How much an analysis looks at unless sizes are given."""


def probe(
    study: Study,
    *,
    names: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    leave_out: Sequence[str] = (),
    fresh: bool = False,
) -> None:
    """Make the named analyses of a study (default: all that it allows), each a stage of its own."""
    from ..analysis.catalogue import ANALYSES

    for name in names:
        _ = ANALYSES[name]  # an unknown name is an error before any work
    sizes = {**SIZES, **(sizes or {})}
    configs = _configs(options or {}, names or list(ANALYSES))
    wanted = [n for n in ANALYSES if n in names or (not names and n not in leave_out)]
    left_out: list[str] = []
    with study.run.locked(), progress():
        for name in wanted:
            try:
                if lacking := _lacking(study, ANALYSES[name]):
                    raise LoratomyError(f"it {lacking}")
                _make(study, name, ANALYSES[name], configs[name], sizes, fresh=fresh)
            except RunError:
                raise  # of the run, not of the analysis
            except LoratomyError as error:
                left_out.append(name)
                if len(left_out) == len(wanted):
                    raise _alone(name, error) from error
                say(f"left out: {name}, because {error}")
        for name in leave_out:
            say(f"{name} left out here; loratomy probe {study.run.root} --only {name} makes it")
    if left_out:
        say(f"left out: {', '.join(left_out)} (for the reasons above); the other analyses are done")


def _alone(name: str, error: LoratomyError) -> LoratomyError:
    """The error of an analysis of which nothing else was made, its name in front."""
    text = str(error)
    return LoratomyError(
        text.replace("it ", f"{name} ", 1) if text[:3] == "it " else f"{name}: {text}"
    )


def _configs(options: Mapping[str, Any], wanted: Sequence[str]) -> "dict[str, Config]":
    """The options of every analysis, ``name.key`` by ``name.key``."""
    from ..analysis.catalogue import ANALYSES
    from ..training.recipe import validated

    given: dict[str, dict[str, Any]] = {name: {} for name in ANALYSES}
    for key, value in options.items():
        name, found, option = key.partition(".")
        if not found:
            raise LoratomyError(f"--set {key}: write ANALYSIS.OPTION=VALUE, e.g. where.checked=8")
        _ = ANALYSES[name]
        if name not in wanted:
            raise LoratomyError(f"--set {key}: {name} is not among --only {','.join(wanted)}")
        given[name][option] = value
    return {n: validated(a.config, given[n], f"analysis {n}") for n, a in ANALYSES.items()}


def _lacking(study: Study, analysis: "Analysis") -> str:
    """What the run lacks for an analysis, in words; empty when nothing."""
    from ..analysis.analyses import CLEAN_ADAPTER, TRIGGER

    if CLEAN_ADAPTER in analysis.needs and not study.run.has("adapters/clean"):
        return "needs a clean adapter (loratomy open --clean-adapter DIR)"
    if TRIGGER in analysis.needs and not study.settings.words:
        return "needs the trigger (loratomy open --trigger TEXT)"
    family = study.subject.family.model_type
    if analysis.families and family not in analysis.families:
        return f"is for {', '.join(analysis.families)}, this base is of the family {family}"
    return ""


def _make(
    study: Study, name: str, analysis: "Analysis", config: "Config", sizes: Mapping[str, int], *,
    fresh: bool,
) -> None:  # fmt: skip
    combined = [n for n in analysis.combines if study.run.has(STAGE + n)]
    sources = ["data", "adapters/poisoned", *(STAGE + n for n in combined)]
    sources += ["adapters/clean"] * study.run.has("adapters/clean")
    settings = {
        "sizes": dict(sizes),
        "options": config.model_dump(),
        **own_code(**{name: analysis}),
    }
    inputs = {**study.origin(*sources), "settings": settings}
    if not fresh and _combined_changed(study, name, inputs, analysis.combines):
        say(f"{name}: made again, because analyses that it combines are new")
        fresh = True

    def fill(shelf: Shelf) -> None:
        material = _material(study, combined, sizes)
        with _numbers_hold():
            records = analysis.run(material, config)
        for file, record in records.items():
            shelf.put(file, record)

    done(study.run, STAGE + name, study.run.make(STAGE + name, inputs, fill, fresh=fresh))


@contextmanager
def _numbers_hold() -> Iterator[None]:
    """An error of ours where a decomposition fails: weights so large that numbers overflow."""
    import numpy as np
    import torch

    failed: tuple[type[Exception], ...] = (
        np.linalg.LinAlgError,
        torch.linalg.LinAlgError,  # pyright: ignore
    )
    try:
        yield
    except failed as error:
        raise LoratomyError(
            "its numbers overflow: a matrix cannot be decomposed "
            f"({str(error).strip().splitlines()[0][:120]}); are the adapter's weights of a size "
            "that makes sense?"
        ) from error


def _combined_changed(
    study: Study, name: str, inputs: Mapping[str, Any], combines: Sequence[str]
) -> bool:
    """Whether a finished analysis differs from these inputs in what it combines, and only there."""
    if not study.run.differs(STAGE + name, inputs):
        return False
    stages = {STAGE + other for other in combines}

    def rest(of: Mapping[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in of["from"].items() if k not in stages}
        return {**of, "from": kept}

    old = study.run.inputs(STAGE + name)
    return bool(stages) and jsonable(rest(inputs)) == rest(old)


def _material(study: Study, combined: Sequence[str], sizes: Mapping[str, int]) -> "Material":
    from ..analysis.material import Material

    return Material(
        subject=study.subject,
        poisoned=study.poisoned,
        clean=study.clean,
        triggered=study.rows("poison_train") if study.settings.words else (),
        clean_rows=study.rows("clean_train"),
        make_rule=lambda: study.rule,
        seed=study.settings.seed,
        records={name: load_stage(study.run, STAGE + name) for name in combined},
        prompts=sizes["prompts"],
        target_tokens=sizes["target_tokens"],
    )


def load_stage(run: Run, stage: str) -> list[Any]:
    """The records of a finished analysis, by file name."""
    shelf = run.shelf(stage)
    return [shelf.any(name) for name in sorted(shelf.names)]


def finished(run: Run) -> list[str]:
    """Names of the finished analyses of a run, in the order in which they were made."""
    stages = [s.removeprefix(STAGE) for s in run.stages if s.startswith(STAGE)]
    return [s for s in stages if "/" not in s and run.has(STAGE + s)]
