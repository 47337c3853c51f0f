"""Experiment trackers of a study: which ones, and where they write below its run folder."""

import shutil
from typing import TYPE_CHECKING

from ..core import processes
from ..core.errors import LoratomyError
from ..core.runs.folder import TRACKING, RunFolder
from ..core.runs.run import Run

if TYPE_CHECKING:
    from ..training.tracking import Tracking


def tracking_of(
    run: Run, stage: str, trackers: tuple[str, ...], *, fresh: bool = False
) -> "Tracking":
    """Where the trackers write for a stage of a run.

    Args:
        run: the run.
        stage: of `Run.make`.
        trackers: by name, see `training.tracking.trackers_of`.
        fresh: drop what earlier fits of this stage reported.

    Raises:
        LoratomyError: trackers for a run in memory.
    """
    from ..training.tracking import NO_TRACKING, Tracking

    if not isinstance(run, RunFolder):
        if trackers:
            raise LoratomyError(
                f"{', '.join(trackers)} need a folder to write to; open the study with out=..."
            )
        return NO_TRACKING
    folder = run.path(TRACKING)
    if fresh and trackers and processes.first():
        shutil.rmtree(folder / stage, ignore_errors=True)
    name = f"{run.manifest['name']} {stage.rsplit('/', 1)[-1]}"
    return Tracking(trackers, folder=folder, stage=stage, name=name)
