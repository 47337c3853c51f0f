"""`loratomy verify`: is every file of a run what was recorded?"""

from pathlib import Path
from typing import Annotated

import typer

from ..core.console import say
from ..core.errors import RunError
from ..core.runs.folder import RunFolder


def command(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]) -> None:
    """Check the files of a run against their recorded checksums.

    Exits with 2 when a file differs.

    Example: loratomy verify runs/demo
    """
    folder = RunFolder.open(run)
    wrong = folder.verify()
    for line in wrong:
        say(line)
    count = sum(len(s["files"]) for s in folder.manifest["stages"].values())
    if wrong:
        raise RunError(f"{len(wrong)} of {count} files differ from their records")
    say(f"{count} files are as recorded")
