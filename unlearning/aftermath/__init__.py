"""What happens after removal: relearning, and other forms of the trigger."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
