"""Activation patching: pairs of runs, sites, maps, screening, patched answers, nnsight."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
