"""What decides the numbers besides settings and data: versions, machine, this project's code."""

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("loratomy", "torch", "transformers", "peft", "datasets", "sentence-transformers")

_DECIDING = ("core", "data", "evaluation", "training", "analysis", "unlearning")


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> str:
    """System, processor and cores, in words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def code_digest() -> str:
    """A digest of this project's own source, so that a partial run is not continued by other code.

    Of every file of the rooms that decide a result, in sub-packages too; figures, the bench and the
    command line do not change one.
    """
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for room in _DECIDING:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
