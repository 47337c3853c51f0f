from .cells import CELLS as CELLS
from .cells import attack_cells as attack_cells
from .cells import other_cells as other_cells
from .failures import read_notes as read_notes
from .goals import CUT as CUT
from .goals import Tried as Tried
from .leaderboard import standings as standings
from .run import RECIPE as RECIPE
from .run import BenchOptions as BenchOptions
from .run import run_bench as run_bench

__all__ = [
    "CELLS",
    "CUT",
    "RECIPE",
    "BenchOptions",
    "Tried",
    "attack_cells",
    "other_cells",
    "read_notes",
    "run_bench",
    "standings",
]
