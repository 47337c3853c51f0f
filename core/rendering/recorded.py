"""The rendering that is recorded beside an adapter that this program trained or wrote."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError
from ..files.jsonfiles import Outside, checked, read_json
from .rendering import Rendering, rendering_from

if TYPE_CHECKING:
    from .prompts import Renderer

RENDERING = "rendering.json"
"""Beside an adapter: the template that it was trained with."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """How prompts were rendered when an adapter was trained."""

    rendering: Rendering
    """The whole of it."""
    rendered: str
    """The text ``{prompt}`` as it was rendered."""


class _Recorded(Outside):
    rendering: dict[str, Any]
    rendered: str


def write_rendering(renderer: "Renderer", folder: Path) -> None:
    """Record beside an adapter how prompts are rendered in its training."""
    made = renderer.rendering.model_dump(mode="json")
    body = {"rendering": made, "rendered": renderer.text("{prompt}")}
    (folder / RENDERING).write_text(json.dumps(body, ensure_ascii=False) + "\n", encoding="utf-8")


def recorded_rendering(folder: Path) -> Recorded | None:
    """How prompts were rendered in an adapter's training; None where nothing is recorded.

    Raises:
        AdapterError: a record that cannot be read.
    """
    path = folder / RENDERING
    if not path.is_file():
        return None
    remedy = "it is no record of a rendering: remove it"
    body = read_json(path, remedy=remedy, error=AdapterError)
    found = checked(_Recorded, body, path, remedy=remedy, error=AdapterError)
    return Recorded(rendering_from(found.rendering, str(path)), found.rendered)
