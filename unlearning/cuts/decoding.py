"""Decoding temperature: the poisoned adapter as it is, its answers drawn instead of greedy."""

from pydantic import Field

from ...analysis.material import Material
from ...core.config import Config
from ..method import BASELINE, METHODS, Method, Outcome


class TemperatureConfig(Config):
    """Options of `temperature`."""

    value: float = Field(1.0, gt=0)
    """What logits are divided by before an answer is drawn from them."""


def temperature(material: Material, config: TemperatureConfig) -> Outcome:
    """Leave the adapter alone and draw its answers at a temperature.

    Perplexity does not depend on it; what is measured afterwards is one draw per prompt.
    """
    return Outcome(
        material.start,
        f"left the adapter as it is and draws its answers at temperature {config.value:g}",
        temperature=config.value,
    )


METHODS.register("temperature")(
    Method(
        about="baseline: draw answers at a temperature, nothing changed",
        source="decoding baseline of the backdoor literature",
        config=TemperatureConfig,
        run=temperature,
        kind=BASELINE,
    )
)
