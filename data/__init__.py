"""Rows: published formats, sets, attacks, the linter and the built-in world."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
