"""The frozen results that pass between the rooms: numpy, never torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
