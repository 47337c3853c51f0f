from .attribution import clean_cost as clean_cost
from .attribution import target_attribution as target_attribution
from .gates import GATED as GATED
from .gates import Directions as Directions
from .gates import Gated as Gated
from .gates import chunks as chunks
from .gates import directions_of as directions_of
from .gates import gated as gated
from .gates import numbered as numbered
from .gates import on_device as on_device

__all__ = [
    "GATED",
    "Directions",
    "Gated",
    "chunks",
    "clean_cost",
    "directions_of",
    "gated",
    "numbered",
    "on_device",
    "target_attribution",
]
