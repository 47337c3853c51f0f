"""Where does it live: one question per file, in sub-packages by kind.

The package can be called: ``loratomy.analysis("name", about=...)`` registers a function as an
analysis, see `loratomy.analysis.analyses.analysis`.
"""

import sys
import types
from typing import Any

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Callable(types.ModuleType):
    """This package, which is also the decorator that `import loratomy as lt` gives by its name."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from .analyses import analysis

        return analysis(*args, **options)


sys.modules[__name__].__class__ = _Callable
