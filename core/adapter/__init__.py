"""LoRA adapters: read through the safety gate, held as factors, their exact algebra."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
