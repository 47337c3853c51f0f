"""How a subject comes to be: recipes, the one fitting loop, trackers, the built-in model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
