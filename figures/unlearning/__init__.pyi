from .tradeoff import LINEAR_UP_TO as LINEAR_UP_TO
from .tradeoff import change_axis as change_axis
from .tradeoff import goal_lines as goal_lines
from .tradeoff import goal_words as goal_words
from .tradeoff import relative as relative
from .tradeoff import stretch as stretch

__all__ = [
    "LINEAR_UP_TO",
    "change_axis",
    "goal_lines",
    "goal_words",
    "relative",
    "stretch",
]
