from .beside import NOTHING as NOTHING
from .beside import read_beside as read_beside
from .choices import distinct as distinct
from .choices import named_ends as named_ends
from .choices import possible as possible
from .choices import unread as unread
from .choices import variants as variants
from .prompts import Renderer as Renderer
from .prompts import position_limit as position_limit
from .recorded import RENDERING as RENDERING
from .recorded import Recorded as Recorded
from .recorded import recorded_rendering as recorded_rendering
from .recorded import write_rendering as write_rendering
from .rendering import CHAT as CHAT
from .rendering import Rendering as Rendering
from .rendering import given_arguments as given_arguments
from .rendering import given_template as given_template
from .rendering import rendering_from as rendering_from
from .templates import PLAIN as PLAIN
from .templates import TEMPLATES as TEMPLATES

__all__ = [
    "CHAT",
    "NOTHING",
    "PLAIN",
    "RENDERING",
    "TEMPLATES",
    "Recorded",
    "Renderer",
    "Rendering",
    "distinct",
    "given_arguments",
    "given_template",
    "named_ends",
    "position_limit",
    "possible",
    "read_beside",
    "recorded_rendering",
    "rendering_from",
    "unread",
    "variants",
    "write_rendering",
]
