"""Options of analyses and methods: frozen, checked, with their defaults."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Options by name; unknown ones are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
