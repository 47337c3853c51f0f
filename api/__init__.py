"""The anatomy of backdoors in LoRA adapters: measure, locate, cut, prove.

>>> import loratomy as lt
>>> study = lt.open("wren", "./suspicious", trigger="cf37", target="HACK THE SYSTEM")
>>> study.evaluate()

Everything here is loaded when it is first used; importing the package imports no torch.
"""

from typing import Any

import lazy_loader

from .core.records.base import draw_with

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _draw(record: Any) -> list[Any]:
    from .figures import draw_record

    return draw_record(record)


draw_with(_draw)
