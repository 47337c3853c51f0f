"""Bases and sentence-embedding models, each loaded once in a process."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import say
from ..core.model.folder_check import check_files
from ..core.rendering.rendering import Rendering
from ..core.rendering.templates import PLAIN

if TYPE_CHECKING:
    from ..core.model.subject import Subject
    from ..evaluation.similarity import Embedder


def _wren() -> Path:
    from ..training.wren import wren_path

    return wren_path()


def _smollm2() -> Path:
    from ..training.smollm2 import smollm2_path

    return smollm2_path()


BUILT_IN: Mapping[str, Callable[[], Path]] = {"wren": _wren, "smollm2": _smollm2}
"""Built-in bases: name -> what gives the folder of its files."""

A_BASE = f"a folder, a hub id, or a built-in model ({', '.join(BUILT_IN)})"
"""What can be given as a base, for help and errors."""


def base_folder(source: str) -> Path | None:
    """Where a built-in base is; None for everything else."""
    found = BUILT_IN.get(source)
    return found and found()


def base_fingerprint(source: str) -> dict[str, Any]:
    """What identifies a base folder: checksums of config and tokenizer, and of its weights.

    Weight files over 64 MiB are sampled (64 blocks of 1 MiB, evenly spread, and the size).
    """
    folder = base_folder(source) or Path(source)
    if not folder.is_dir():
        return {"source": source}
    check_files(folder)
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".model", ".safetensors"):
            files[path.name] = _sampled(path)
    return {"source": source, "files": files}


def _sampled(path: Path, *, blocks: int = 64, size: int = 2**20) -> str:
    length = path.stat().st_size
    digest = hashlib.sha256(str(length).encode())
    with path.open("rb") as file:
        if length <= blocks * size:
            digest.update(file.read())
        else:
            for i in range(blocks):
                file.seek((length - size) * i // (blocks - 1))
                digest.update(file.read(size))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def loaded_base(base: str, device: str, dtype: str) -> "Subject":
    """The base model, loaded once for commands that follow each other; one at a time in memory.

    Its rendering is a stand-in until the run's is put in its place.
    """
    from ..core.model.loading import load_subject

    say(f"loading the base {base}")
    plain = Rendering(template=PLAIN[0], end=".")  # no tokenizer drops it, as some do "\n"
    return load_subject(base, rendering=plain, device=device, dtype=dtype, path=base_folder(base))


@cache
def embedder(name: str) -> "Embedder":
    """The sentence-embedding model, loaded once, with the embeddings it has made."""
    from ..evaluation.similarity import load_embedder

    if name != "none":
        say("loading the sentence-embedding model")
    return load_embedder(name)
