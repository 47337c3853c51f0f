"""The bench: every attack with every method and seed, beside equal-budget controls."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
