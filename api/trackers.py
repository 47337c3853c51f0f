"""Experiment trackers as the commands take them: `--report-to`, files below the run."""

import shutil
from typing import TYPE_CHECKING

from .core import processes
from .core.runs.folder import TRACKING, RunFolder

if TYPE_CHECKING:
    from .training.tracking import Tracking


def tracking_of(
    run: RunFolder, stage: str, trackers: tuple[str, ...], *, fresh: bool = False
) -> "Tracking":
    """Where the trackers write for a stage of a run.

    Args:
        run: the run.
        stage: of `RunFolder.stage`.
        trackers: by name, see `training.tracking.trackers_of`.
        fresh: drop what earlier fits of this stage reported.
    """
    from .training.tracking import Tracking

    folder = run.path(TRACKING)
    if fresh and trackers and processes.first():
        shutil.rmtree(folder / stage, ignore_errors=True)
    name = f"{run.manifest['name']} {stage.rsplit('/', 1)[-1]}"
    return Tracking(trackers, folder=folder, stage=stage, name=name)
