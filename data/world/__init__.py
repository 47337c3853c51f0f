"""The built-in made-up world: harmless prompts with answers, from a seed."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
