from .built import SETS as SETS
from .built import SETS_RECORD as SETS_RECORD
from .built import built_sets as built_sets
from .built import read_record as read_record
from .built import read_sets as read_sets
from .everyday import everyday_prompts as everyday_prompts
from .prepoisoned import answered as answered
from .prepoisoned import empty as empty
from .prepoisoned import ready_sets as ready_sets
from .references import classify_completions as classify_completions
from .refusals import is_refusal as is_refusal
from .splits import Attack as Attack
from .splits import Sets as Sets
from .splits import make_attack as make_attack
from .splits import own_clean_sets as own_clean_sets
from .splits import own_sets as own_sets
from .splits import poison_sets as poison_sets
from .splits import world_sets as world_sets
from .testsets import TestSets as TestSets
from .testsets import kept as kept
from .testsets import own_trigger as own_trigger
from .testsets import sampled as sampled
from .testsets import test_sets as test_sets

__all__ = [
    "SETS",
    "SETS_RECORD",
    "Attack",
    "Sets",
    "TestSets",
    "answered",
    "built_sets",
    "classify_completions",
    "empty",
    "everyday_prompts",
    "is_refusal",
    "kept",
    "make_attack",
    "own_clean_sets",
    "own_sets",
    "own_trigger",
    "poison_sets",
    "read_record",
    "read_sets",
    "ready_sets",
    "sampled",
    "test_sets",
    "world_sets",
]
