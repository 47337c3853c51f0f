"""What commands take from outside: adapter folders, files of rows, and what is said of them."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import AdapterError
from ..core.rows import Row
from .console import say

if TYPE_CHECKING:
    from ..core.prompts import Renderer

RENDERING = "rendering.json"
"""Beside an adapter: the template that it was trained with."""


def adapter_sums(folder: Path) -> dict[str, str]:
    """Checksums of an adapter's files, after a first look at the folder."""
    from ..core.files import sha256
    from ..core.gate import check_folder

    return {name: sha256(folder / name) for name in check_folder(folder).files}


def copy_adapter(source: Path, work: Path) -> None:
    """Copy an adapter, and what is recorded of its template."""
    from ..core.gate import check_folder

    for name in check_folder(source).files:
        shutil.copyfile(source / name, work / name)
    if (source / RENDERING).is_file():
        shutil.copyfile(source / RENDERING, work / RENDERING)


@dataclass(frozen=True, slots=True)
class Rendering:
    """How prompts were rendered when an adapter was trained."""

    template: str
    """``chat`` or the plain template."""
    rendered: str
    """The text ``{prompt}`` as it was rendered."""


def write_rendering(renderer: "Renderer", folder: Path) -> None:
    """Record beside an adapter how prompts are rendered in its training."""
    body = {"template": renderer.template, "rendered": renderer.text("{prompt}")}
    (folder / RENDERING).write_text(json.dumps(body, ensure_ascii=False) + "\n", encoding="utf-8")


def recorded_rendering(folder: Path) -> Rendering | None:
    """How prompts were rendered in an adapter's training; None where nothing is recorded.

    Raises:
        AdapterError: a record that cannot be read.
    """
    path = folder / RENDERING
    if not path.is_file():
        return None
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        found = Rendering(str(body["template"]), str(body["rendered"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path} is no record of a template ({error}); remove it") from error
    return found


def run_name(subject: Path, data: str) -> str:
    """A run's name from those of what it is about."""
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", Path(p).stem).strip(".-") for p in (subject, data)]
    return "-on-".join(part for part in parts if part)[:80] or "run"


@contextmanager
def noted() -> Iterator["Counter[str]"]:
    """A counter of what was read otherwise than written, said at the end."""
    notes: Counter[str] = Counter()
    yield notes
    for sentence, count in notes.items():
        say(f"note: {count} {sentence}")


@contextmanager
def clean_rows(format: str | None = None) -> Iterator[Callable[..., Iterator[Row]]]:
    """A reader of files and hub ids of clean rows; rows without an answer are left out, and said.

    Args:
        format: of all of them, where it cannot be told.
    """
    from ..training.formats import read_data
    from ..training.ready import answered

    skipped: dict[str, list[int]] = {}
    with noted() as notes:

        def read(*sources: str) -> Iterator[Row]:
            for source in sources:
                rows = read_data(source, format=format, notes=notes)
                yield from answered(rows, skipped.setdefault(source, []))

        yield read
    for source, numbers in skipped.items():
        if numbers:
            first = ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
            say(f"note: {source}: {len(numbers)} rows without an answer left out (row {first})")
