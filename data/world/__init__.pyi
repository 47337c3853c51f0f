from .world import base_rows as base_rows
from .world import finetune_rows as finetune_rows
from .world import finetune_stream as finetune_stream

__all__ = [
    "base_rows",
    "finetune_rows",
    "finetune_stream",
]
