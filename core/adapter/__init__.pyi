from .algebra import Svd as Svd
from .algebra import adapter_distance as adapter_distance
from .algebra import adapter_norm as adapter_norm
from .algebra import from_svd as from_svd
from .algebra import norm as norm
from .algebra import principal_angles as principal_angles
from .algebra import scale_directions as scale_directions
from .algebra import spectrum as spectrum
from .algebra import stack as stack
from .algebra import svd as svd
from .algebra import svd_form as svd_form
from .extraction import Extracted as Extracted
from .extraction import Extraction as Extraction
from .extraction import extract as extract
from .factors import Adapter as Adapter
from .factors import Factors as Factors
from .factors import Shapes as Shapes
from .factors import factor_keys as factor_keys
from .factors import filled as filled
from .factors import kind_of as kind_of
from .factors import layer_of as layer_of
from .factors import pack as pack
from .factors import read_adapter as read_adapter
from .factors import storage_keys as storage_keys
from .factors import uniform as uniform
from .factors import unpack as unpack
from .factors import write_adapter as write_adapter
from .safety import CONFIG as CONFIG
from .safety import WEIGHTS as WEIGHTS
from .safety import below as below
from .safety import check_folder as check_folder
from .safety import read_header as read_header
from .stored import PREFIX as PREFIX
from .targets import HEADS as HEADS
from .targets import is_embedding as is_embedding

__all__ = [
    "CONFIG",
    "HEADS",
    "PREFIX",
    "WEIGHTS",
    "Adapter",
    "Extracted",
    "Extraction",
    "Factors",
    "Shapes",
    "Svd",
    "adapter_distance",
    "adapter_norm",
    "below",
    "check_folder",
    "extract",
    "factor_keys",
    "filled",
    "from_svd",
    "is_embedding",
    "kind_of",
    "layer_of",
    "norm",
    "pack",
    "principal_angles",
    "read_adapter",
    "read_header",
    "scale_directions",
    "spectrum",
    "stack",
    "storage_keys",
    "svd",
    "svd_form",
    "uniform",
    "unpack",
    "write_adapter",
]
