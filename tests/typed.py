"""The package as its users import it, in build/typed, for pyright: links to the rooms' files.

`python tests/typed.py ROOM ...`
"""

import os
import shutil
import sys
from pathlib import Path

TREE = Path("build/typed")


def linked(source: str, target: str) -> None:
    """A link in place of a copy."""
    os.symlink(os.path.abspath(source), target)


if __name__ == "__main__":
    shutil.rmtree(TREE, ignore_errors=True)
    for room in sys.argv[1:]:
        place = TREE / "loratomy" / ("" if room == "api" else room)
        shutil.copytree(
            room,
            place,
            copy_function=linked,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
