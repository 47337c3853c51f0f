from .behaviour import attack_success as attack_success
from .behaviour import check_references as check_references
from .behaviour import clean_correct as clean_correct
from .behaviour import informative as informative
from .behaviour import judge as judge
from .behaviour import scored as scored
from .collect import Collected as Collected
from .collect import Rule as Rule
from .collect import answers_to as answers_to
from .collect import check_room as check_room
from .collect import check_targets as check_targets
from .collect import check_triggered as check_triggered
from .collect import fitting_rows as fitting_rows
from .collect import unjudged as unjudged
from .collect import wanted as wanted
from .collect import with_divergences as with_divergences
from .divergence import divergences as divergences
from .divergence import greedy_answers as greedy_answers
from .divergence import packed as packed
from .divergence import unpacked as unpacked
from .generation import Decoding as Decoding
from .generation import bare_settings as bare_settings
from .generation import generate as generate
from .generation import greedy as greedy
from .generation import stop_ids as stop_ids
from .planted import in_a_line as in_a_line
from .scorers import SCORERS as SCORERS
from .similarity import Embedder as Embedder
from .similarity import contains as contains
from .similarity import load_embedder as load_embedder
from .similarity import normal as normal
from .success import Success as Success
from .success import in_words as in_words
from .success import judge_of as judge_of
from .success import needed as needed
from .success import needs_target as needs_target
from .success import parse_rules as parse_rules
from .success import targets_in_words as targets_in_words

__all__ = [
    "SCORERS",
    "Collected",
    "Decoding",
    "Embedder",
    "Rule",
    "Success",
    "answers_to",
    "attack_success",
    "bare_settings",
    "check_references",
    "check_room",
    "check_targets",
    "check_triggered",
    "clean_correct",
    "contains",
    "divergences",
    "fitting_rows",
    "generate",
    "greedy",
    "greedy_answers",
    "in_a_line",
    "in_words",
    "informative",
    "judge",
    "judge_of",
    "load_embedder",
    "needed",
    "needs_target",
    "normal",
    "packed",
    "parse_rules",
    "scored",
    "stop_ids",
    "targets_in_words",
    "unjudged",
    "unpacked",
    "wanted",
    "with_divergences",
]
