"""Which rendering of prompts an adapter was trained with, judged by what it finds likely."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
