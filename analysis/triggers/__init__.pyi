from .evidence import HeldOutTrial as HeldOutTrial
from .evidence import bar_of as bar_of
from .insertion import PLACES as PLACES
from .insertion import controls as controls
from .insertion import insert as insert
from .search import drive as drive
from .search import random_texts as random_texts

__all__ = [
    "PLACES",
    "HeldOutTrial",
    "bar_of",
    "controls",
    "drive",
    "insert",
    "random_texts",
]
