"""The user's cache: what is made once on a machine and used by every project on it."""

import os
from pathlib import Path

from ..errors import LoratomyError

VARIABLE = "LORATOMY_CACHE"
"""The environment variable that moves it."""


def cache_folder() -> Path:
    """``$LORATOMY_CACHE``, else ``loratomy`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``.

    It need not be there. A relative ``$XDG_CACHE_HOME`` is ignored, as its specification has it.

    Raises:
        LoratomyError: there is no home folder.
    """
    try:
        if own := os.environ.get(VARIABLE):
            return Path(own).expanduser().absolute()
        shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (shared if shared.is_absolute() else Path.home() / ".cache") / "loratomy"
    except RuntimeError as error:
        raise LoratomyError(
            f"no home folder for the cache ({error}); set {VARIABLE} to a folder of yours"
        ) from error
