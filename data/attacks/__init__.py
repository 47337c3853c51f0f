"""Attacks: triggers, tasks, and where trigger words go in a prompt."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
