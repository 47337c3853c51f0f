from .choice import GIVEN as GIVEN
from .choice import RECORDED as RECORDED
from .choice import closed as closed
from .choice import find_rendering as find_rendering
from .choice import given_choice as given_choice
from .choice import likelier as likelier
from .contradiction import mismatch as mismatch
from .contradiction import rendered_before as rendered_before
from .contradiction import uneven as uneven
from .scores import known_of as known_of

__all__ = [
    "GIVEN",
    "RECORDED",
    "closed",
    "find_rendering",
    "given_choice",
    "known_of",
    "likelier",
    "mismatch",
    "rendered_before",
    "uneven",
]
