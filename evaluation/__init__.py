"""Does it misbehave: answers, success rules, ASR, FTR, accuracy, perplexity, degeneration."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
