"""Methods that fit: negative fine-tuning, repair, NPO, ascent, CROW, TSBD."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
