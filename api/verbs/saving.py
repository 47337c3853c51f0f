"""A study in memory written as a run folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..core.errors import LoratomyError
from ..core.runs.folder import RunFolder
from ..core.runs.memory import MemoryRun
from ..core.runs.shelf import MemoryShelf, Shelf
from ..study import Study


def save(study: Study, folder: Path) -> Path:
    """Write a study in memory as a run folder; returns its path.

    Args:
        study: in memory, its base by folder, hub id or name.
        folder: new, or empty.

    Raises:
        LoratomyError: it is in a folder already, or its base cannot be loaded again.
        RunError: the folder holds something.
    """
    run = study.run
    if not isinstance(run, MemoryRun):
        raise LoratomyError(f"this study is in {run.root} already")
    if study.given is not None:
        raise LoratomyError(
            "a run folder is for a base that can be loaded again; this one was given in memory"
        )
    written = RunFolder.create(folder, request=run.request)
    with written.locked():
        for stage in run.stages:
            shelf = run.shelf(stage)
            inputs = run.inputs(stage)
            if stage.endswith(".jsonl"):
                written.make_rows(stage, _on_disk(run, written, inputs), partial(run.rows, stage))
            else:
                fill: Callable[[Shelf], None] = partial(_copy, shelf, study, stage)
                written.make(stage, _on_disk(run, written, inputs), fill)
    return written.root


def _copy(source: MemoryShelf, study: Study, stage: str, target: Shelf) -> None:
    source.copy_to(target, study.subject, plain=stage.startswith("adapters/"))


def _on_disk(run: MemoryRun, written: RunFolder, inputs: dict) -> dict:
    """The inputs of a stage with the digests that its sources have on disk."""
    if "from" not in inputs:
        return inputs
    return {**inputs, "from": written.digest(*inputs["from"])}
