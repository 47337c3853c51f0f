"""Files: written whole or not at all, read within bounds, and only where they may be."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
