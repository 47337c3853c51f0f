from .costs import KL as KL
from .costs import LINEAR_UP_TO as LINEAR_UP_TO
from .costs import PERPLEXITY as PERPLEXITY
from .costs import Cost as Cost
from .costs import cost_axis as cost_axis
from .costs import goal_lines as goal_lines
from .costs import goal_words as goal_words
from .costs import stretch as stretch
from .tradeoff import relative as relative

__all__ = [
    "KL",
    "LINEAR_UP_TO",
    "PERPLEXITY",
    "Cost",
    "cost_axis",
    "goal_lines",
    "goal_words",
    "relative",
    "stretch",
]
