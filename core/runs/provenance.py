"""What decides the numbers besides settings and data: versions, machine, this project's code."""

import hashlib
import inspect
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..registry import function_of, is_ours

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


def own_code(**registered: Any) -> dict[str, dict[str, str]]:
    """A digest of the source of what somebody else registered, as a part of a stage's inputs.

    Args:
        **registered: by name; what is this project's own is left out, for `code_digest` has it.

    Returns:
        ``{"code": {name: digest}}``; empty where all is this project's.
    """
    found = {}
    for name, item in registered.items():
        function = function_of(item)
        module = str(getattr(function, "__module__", "loratomy"))
        if not is_ours(module):
            found[name] = hashlib.sha256(_source(function, module).encode()).hexdigest()[:16]
    return {"code": found} if found else {}


def _source(function: Any, module: str) -> str:
    """The file in which a function is written; of a notebook's, its own lines."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file and module != "__main__":
        return Path(file).read_text(encoding="utf-8", errors="replace")
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt
        code = getattr(function, "__code__", None)
        return repr((code.co_code, code.co_consts, code.co_names)) if code else repr(function)
