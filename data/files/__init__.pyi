from .folders import data_parts as data_parts
from .readers import items as items
from .texts import DataRecord as DataRecord
from .texts import Item as Item

__all__ = [
    "DataRecord",
    "Item",
    "data_parts",
    "items",
]
