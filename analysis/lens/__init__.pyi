from .inputs import after_lead as after_lead
from .inputs import known_tokens as known_tokens
from .inputs import stream_inputs as stream_inputs
from .reading import listeners as listeners
from .reading import listening_strength as listening_strength

__all__ = [
    "after_lead",
    "known_tokens",
    "listeners",
    "listening_strength",
    "stream_inputs",
]
