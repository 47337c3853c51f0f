"""Files and packages that register analyses, methods and scorers of somebody's own."""

import importlib.util
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from ..core.errors import LoratomyError

GROUP = "loratomy.plugins"
"""Entry points of packages: each names a module."""


@cache
def load_file(path: Path) -> None:
    """Run a file that registers something, once in a process.

    Raises:
        LoratomyError: there is no such file, or it ends in an error, which is named.
    """
    if not path.is_file():
        raise LoratomyError(f"--plugin {path}: there is no such file")
    name = f"loratomy_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoratomyError(f"--plugin {path}: give a Python file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # somebody's own code may raise anything; its line is named
        sys.modules.pop(name, None)
        raise LoratomyError(f"--plugin {path}: {_where(error, path)}") from error


@cache
def load_installed() -> None:
    """Import what installed packages register, once in a process.

    Raises:
        LoratomyError: one of them ends in an error, which is named.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # as above
            package = point.dist.name if point.dist else point.value
            raise LoratomyError(
                f"the plugin {point.name} of {package} cannot be loaded: "
                f"{type(error).__name__}: {error}; mend or uninstall it"
            ) from error


def _where(error: Exception, path: Path) -> str:
    """An error with the line of the file in which it arose."""
    trace, line = error.__traceback__, None
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    line = line or getattr(error, "lineno", None)
    place = f"line {line}: " if line else ""
    return f"{place}{type(error).__name__}: {error}"
