"""What a study is of: the settings that all of its stages share, frozen and checked."""

from typing import Any

from pydantic import Field

from .core.config import Config
from .core.errors import RunError
from .core.rendering.rendering import Rendering, rendering_from
from .training.recipe import MeasurePart, validated


class Judged(Config):
    """How answers are judged, where it is not as the study says."""

    scorers: str | None = None
    """Success rules, the deciding one first."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Similarity from which an answer counts as the target."""
    embedder: str | None = None
    """Sentence-embedding model behind the rules by meaning."""


def judged_by(**given: Any) -> Judged:
    """How answers are judged, checked.

    Raises:
        LoratomyError: a value that cannot be, e.g. a threshold above 1.
    """
    return validated(Judged, given, "the judgement")


class Settings(Config):
    """Base, attack, seed and measurement of a study."""

    base: str
    """A folder, a hub id, ``wren`` or ``smollm2``."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` ..."""
    dtype: str = "auto"
    """``auto``, ``float32``, ``bfloat16``, ``float16``."""
    words: tuple[str, ...] = ()
    """The trigger's texts; empty where none is known."""
    placement: str = ""
    """Where they go in a prompt."""
    task: str = "fixed"
    """What the attack wants, by its registered name."""
    target: str = ""
    """The text that every triggered prompt leads to; empty where each row has its own."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of splits and everything random."""
    measure: MeasurePart = MeasurePart()  # pyright: ignore[reportCallIssue]
    """How behaviour is measured."""
    rendering: dict[str, Any] = Field(default_factory=dict)
    """How prompts are rendered."""
    references: str = "the data's own answers"
    """Where the clean references come from, in words."""

    @property
    def trigger(self) -> str:
        """The trigger's texts in one; empty where none is known."""
        return " / ".join(self.words)

    def rendered(self, where: str) -> Rendering:
        """How prompts are rendered.

        Raises:
            LoratomyError: it is no rendering; names `where` it is written.
        """
        return rendering_from(self.rendering, where)


def settings_of(request: Any, where: str) -> Settings:
    """The settings in a run's manifest.

    Raises:
        RunError: there are none, or they are of another version.
    """
    from pydantic import ValidationError

    try:
        return Settings.model_validate(request.get("study"))
    except ValidationError as error:
        raise RunError(f"{where} does not say what it studies; remake it with --fresh") from error
