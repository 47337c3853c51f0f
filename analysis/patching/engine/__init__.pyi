from .batching import GIB as GIB
from .batching import MemoryBudget as MemoryBudget
from .batching import budget as budget
from .gradients import Runs as Runs
from .gradients import along as along
from .gradients import blocks_of as blocks_of
from .gradients import both_runs as both_runs
from .gradients import groups as groups
from .gradients import precise as precise
from .gradients import slopes as slopes
from .resume import Port as Port
from .resume import Trace as Trace
from .resume import has_port as has_port
from .resume import trace as trace
from .sweep import PatchRun as PatchRun
from .sweep import Sweep as Sweep

__all__ = [
    "GIB",
    "MemoryBudget",
    "PatchRun",
    "Port",
    "Runs",
    "Sweep",
    "Trace",
    "along",
    "blocks_of",
    "both_runs",
    "budget",
    "groups",
    "has_port",
    "precise",
    "slopes",
    "trace",
]
