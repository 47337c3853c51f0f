from .intruders import IntrudersConfig as IntrudersConfig
from .spectra import base_weight as base_weight
from .spectra import expanded as expanded
from .spectra import names_and_layers as names_and_layers
from .spectra import relative_size as relative_size
from .topsvd import all_triplets as all_triplets
from .topsvd import changed as changed
from .topsvd import strongest as strongest

__all__ = [
    "IntrudersConfig",
    "all_triplets",
    "base_weight",
    "changed",
    "expanded",
    "names_and_layers",
    "relative_size",
    "strongest",
]
