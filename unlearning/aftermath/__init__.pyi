from .relearning import Bout as Bout
from .relearning import RelearningConfig as RelearningConfig
from .relearning import blank as blank
from .relearning import bout as bout
from .relearning import relearn as relearn
from .transfer import TransferConfig as TransferConfig
from .transfer import Variant as Variant
from .transfer import transfer_rates as transfer_rates
from .transfer import variants as variants

__all__ = [
    "Bout",
    "RelearningConfig",
    "TransferConfig",
    "Variant",
    "blank",
    "bout",
    "relearn",
    "transfer_rates",
    "variants",
]
