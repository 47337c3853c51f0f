from .folder import FIGURES as FIGURES
from .folder import REPORT as REPORT
from .folder import TRACKING as TRACKING
from .folder import RunFolder as RunFolder
from .locks import held as held
from .manifest import outside_runs as outside_runs
from .memory import MemoryRun as MemoryRun
from .provenance import code_digest as code_digest
from .provenance import machine as machine
from .provenance import versions as versions
from .run import Run as Run
from .shelf import MemoryShelf as MemoryShelf
from .shelf import Shelf as Shelf

__all__ = [
    "FIGURES",
    "REPORT",
    "TRACKING",
    "MemoryRun",
    "MemoryShelf",
    "Run",
    "RunFolder",
    "Shelf",
    "code_digest",
    "held",
    "machine",
    "outside_runs",
    "versions",
]
