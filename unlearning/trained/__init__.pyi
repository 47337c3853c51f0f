from .distill import own_answers as own_answers
from .finetune import equal_budget as equal_budget
from .fit import scaled_rate as scaled_rate

__all__ = [
    "equal_budget",
    "own_answers",
    "scaled_rate",
]
