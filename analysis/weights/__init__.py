"""The weight change itself: spectra, differences, matched and intruding directions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
