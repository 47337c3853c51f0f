"""What decides the numbers besides settings and data: versions, machine, this project's code."""

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("loratomy", "torch", "transformers", "peft", "datasets", "sentence-transformers")


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

    Figures and the command line are left out: they do not change a result.
    """
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for room in ("core", "training", "analysis", "unlearning"):
        for path in sorted((root / room).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
