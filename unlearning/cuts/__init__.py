"""Edits of the weights by rule, and the baselines that need no fit."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
