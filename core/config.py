"""Options of analyses and methods: frozen, checked, with their defaults."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Config(BaseModel):
    """Options by name; unknown ones are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def _numbers(value: Any) -> Any:
    """Layer numbers from numbers and ranges: ``[0, "2-4"]``, ``"0,2-4"``, or ``"2-4"`` alone."""
    numbers: list[Any] = []
    parts = value.split(",") if isinstance(value, str) else value
    for item in parts if isinstance(parts, list | tuple) else [parts]:
        if not isinstance(item, str):
            numbers.append(item)
            continue
        ends = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", item)
        if ends is None or int(ends[1]) > int(ends[2] or ends[1]):
            raise ValueError(f"{item!r} is no layer and no range of layers, write e.g. 0,2-4")
        numbers += range(int(ends[1]), int(ends[2] or ends[1]) + 1)
    return tuple(numbers)


Whole = Annotated[int, Field(strict=True, ge=0)]
Layers = Annotated[tuple[Whole, ...], Field(min_length=1), BeforeValidator(_numbers)]
"""Layers by number, ranges written as texts."""
