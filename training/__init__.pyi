from .fitting import FitLog as FitLog
from .fitting import fit as fit
from .fitting import fresh_adapter as fresh_adapter
from .loop import TRAINED as TRAINED
from .loop import steps_of as steps_of
from .objective import Batch as Batch
from .objective import Objective as Objective
from .objective import completion_objective as completion_objective
from .objective import completion_tokens as completion_tokens
from .recipe import FitPart as FitPart
from .recipe import MeasurePart as MeasurePart
from .recipe import Recipe as Recipe
from .recipe import Words as Words
from .recipe import load_recipe as load_recipe
from .recipe import validated as validated
from .resuming import last_whole as last_whole
from .smollm2 import smollm2_path as smollm2_path
from .tracking import NO_TRACKING as NO_TRACKING
from .tracking import Tracking as Tracking
from .tracking import trackers_of as trackers_of
from .wren import wren_path as wren_path

__all__ = [
    "NO_TRACKING",
    "TRAINED",
    "Batch",
    "FitLog",
    "FitPart",
    "MeasurePart",
    "Objective",
    "Recipe",
    "Tracking",
    "Words",
    "completion_objective",
    "completion_tokens",
    "fit",
    "fresh_adapter",
    "last_whole",
    "load_recipe",
    "smollm2_path",
    "steps_of",
    "trackers_of",
    "validated",
    "wren_path",
]
