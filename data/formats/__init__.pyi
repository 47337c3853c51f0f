from .badrows import BadRows as BadRows
from .badrows import RowError as RowError
from .columns import column_names as column_names
from .columns import is_row as is_row
from .formats import Numbered as Numbered
from .formats import numbered_data as numbered_data
from .formats import read_data as read_data

__all__ = [
    "BadRows",
    "Numbered",
    "RowError",
    "column_names",
    "is_row",
    "numbered_data",
    "read_data",
]
