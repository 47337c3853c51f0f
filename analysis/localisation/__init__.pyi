from .attribution import clean_cost as clean_cost
from .attribution import target_attribution as target_attribution
from .gates import GATED as GATED
from .gates import Directions as Directions
from .gates import GatedModel as GatedModel
from .gates import batches as batches
from .gates import directions_of as directions_of
from .gates import gated_model as gated_model
from .gates import numbered as numbered

__all__ = [
    "GATED",
    "Directions",
    "GatedModel",
    "batches",
    "clean_cost",
    "directions_of",
    "gated_model",
    "numbered",
    "target_attribution",
]
