from .tradeoff import ASR_GOAL as ASR_GOAL
from .tradeoff import LINEAR_UP_TO as LINEAR_UP_TO
from .tradeoff import PERPLEXITY_GOAL as PERPLEXITY_GOAL
from .tradeoff import STRICT_PERPLEXITY_GOAL as STRICT_PERPLEXITY_GOAL
from .tradeoff import change_axis as change_axis
from .tradeoff import goal_lines as goal_lines
from .tradeoff import relative as relative
from .tradeoff import stretch as stretch

__all__ = [
    "ASR_GOAL",
    "LINEAR_UP_TO",
    "PERPLEXITY_GOAL",
    "STRICT_PERPLEXITY_GOAL",
    "change_axis",
    "goal_lines",
    "relative",
    "stretch",
]
