from .relearning import RelearningConfig as RelearningConfig
from .relearning import RelearningSetup as RelearningSetup
from .relearning import blank as blank
from .relearning import relearn as relearn
from .relearning import relearning_setup as relearning_setup
from .transfer import TransferConfig as TransferConfig
from .transfer import Variant as Variant
from .transfer import transfer_rates as transfer_rates
from .transfer import variants as variants

__all__ = [
    "RelearningConfig",
    "RelearningSetup",
    "TransferConfig",
    "Variant",
    "blank",
    "relearn",
    "relearning_setup",
    "transfer_rates",
    "variants",
]
