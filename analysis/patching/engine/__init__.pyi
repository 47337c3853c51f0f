from .batching import GIB as GIB
from .batching import MemoryBudget as MemoryBudget
from .batching import budget as budget
from .gradients import along as along
from .gradients import blocks_of as blocks_of
from .gradients import slopes as slopes
from .resume import Port as Port
from .resume import Trace as Trace
from .resume import has_port as has_port
from .resume import trace as trace
from .runs import PatchRun as PatchRun
from .runs import Runs as Runs
from .runs import Sweep as Sweep
from .runs import both_runs as both_runs
from .runs import precise as precise

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
    "has_port",
    "precise",
    "slopes",
    "trace",
]
