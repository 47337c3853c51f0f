"""What an operation may cost on clean calibration rows: rise of perplexity, KL divergence."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from ..core.config import Config


class Budget(Config):
    """Limits that a method keeps to while it chooses how much to cut.

    Written as text: ``5%`` or ``0.05`` (perplexity), ``kl=.05``, or both: ``1%,kl=.05``.
    """

    perplexity: float = Field(0.05, ge=0)
    """Allowed rise of perplexity on calibration rows, as a fraction (0.05 is 5 %)."""
    kl: float | None = Field(None, ge=0)
    """Allowed KL divergence from the poisoned adapter, nats per token of its own answers to clean
    calibration rows; None: any."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            return parts_of(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"perplexity": value}
        if isinstance(value, Mapping) and isinstance(value.get("perplexity"), str):
            return {**value, "perplexity": fraction(value["perplexity"])}
        return value

    def __str__(self) -> str:
        """The budget as it can be given."""
        shown = f"{100 * self.perplexity:.15g}%"
        return shown if self.kl is None else f"{shown},kl={self.kl!r}"


def parts_of(text: str) -> dict[str, float]:
    """The limits in a text such as ``1%,kl=.05``, by name.

    Raises:
        ValueError: says what is wrong with it.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, given, value = part.partition("=")
        name, value = (name.strip(), value) if given else ("perplexity", part)
        if name not in Budget.model_fields:
            raise ValueError(f"{text!r}: there is no limit {name!r}; write e.g. 1%,kl=.05")
        if name in found:
            raise ValueError(f"{text!r} gives {name} twice")
        found[name] = fraction(value) if name == "perplexity" else nats(value)
    return found


def fraction(text: str) -> float:
    """A share as a fraction: of ``1%``, ``1 %`` or ``0.01``.

    Raises:
        ValueError: says what is wrong with it.
    """
    number, percent = text.strip(), text.strip().endswith("%")
    try:
        value = float(number.removesuffix("%")) / (100 if percent else 1)
    except ValueError as error:
        raise ValueError(f"{text!r} is no share: write 1% or 0.01") from error
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{text!r}: write a share of 0 or more, like 1% or 0.01")
    if value >= 1 and not percent:
        raise ValueError(f"{text!r} is {value:.0%}: write {value:g}% if you mean that")
    return value


def nats(text: str) -> float:
    """A KL divergence, nats per token.

    Raises:
        ValueError: says what is wrong with it.
    """
    try:
        value = float(text)
    except ValueError as error:
        raise ValueError(f"kl={text}: write nats per token, like kl=.05") from error
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"kl={text}: write nats per token, 0 or more, like kl=.05")
    return value
