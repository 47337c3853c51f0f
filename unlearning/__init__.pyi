from .budget import Budget as Budget
from .calibration import DialConfig as DialConfig
from .calibration import Judge as Judge
from .calibration import Measured as Measured
from .calibration import dial as dial
from .calibration import halves as halves
from .calibration import outcome_words as outcome_words
from .calibration import path_of as path_of
from .catalogue import METHODS as METHODS
from .controls import same_change as same_change
from .method import BASELINE as BASELINE
from .method import CLEAN_ADAPTER as CLEAN_ADAPTER
from .method import CLEAN_ROWS as CLEAN_ROWS
from .method import CONTROL as CONTROL
from .method import CUT as CUT
from .method import GRADIENTS as GRADIENTS
from .method import KINDS as KINDS
from .method import TARGET as TARGET
from .method import TRAINED as TRAINED
from .method import TRIGGER as TRIGGER
from .method import Method as Method
from .method import Outcome as Outcome
from .method import check_needs as check_needs
from .method import lacking as lacking
from .method import operate as operate
from .plan import read_plan as read_plan
from .preview import Effect as Effect
from .preview import Preview as Preview
from .preview import by_rule as by_rule

__all__ = [
    "BASELINE",
    "CLEAN_ADAPTER",
    "CLEAN_ROWS",
    "CONTROL",
    "CUT",
    "GRADIENTS",
    "KINDS",
    "METHODS",
    "TARGET",
    "TRAINED",
    "TRIGGER",
    "Budget",
    "DialConfig",
    "Effect",
    "Judge",
    "Measured",
    "Method",
    "Outcome",
    "Preview",
    "by_rule",
    "check_needs",
    "dial",
    "halves",
    "lacking",
    "operate",
    "outcome_words",
    "path_of",
    "read_plan",
    "same_change",
]
