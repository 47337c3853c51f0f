"""Where published data lies: text, tables, columnar files, folders and the hub."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
