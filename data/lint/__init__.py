"""What is wrong with backdoor data, found before a model is trained on it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
