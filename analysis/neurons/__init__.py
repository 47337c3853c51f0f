"""Which neurons unlearning changes, and which are active (TSBD's two observations)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
