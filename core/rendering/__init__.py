"""How prompts are rendered: published templates, a base's own, and which one fits."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
