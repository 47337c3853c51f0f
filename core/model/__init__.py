"""A base model: found, checked, loaded; token batches, and what an operation makes of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
