from .evidence import HeldOutPrompts as HeldOutPrompts
from .evidence import surprise_threshold as surprise_threshold
from .insertion import PLACES as PLACES
from .insertion import controls as controls
from .insertion import insert as insert
from .search import random_texts as random_texts
from .search import token_uptake as token_uptake

__all__ = [
    "PLACES",
    "HeldOutPrompts",
    "controls",
    "insert",
    "random_texts",
    "surprise_threshold",
    "token_uptake",
]
