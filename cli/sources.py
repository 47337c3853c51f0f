"""What commands take from outside: adapter folders, files of rows, and what is said of them."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import AdapterError
from ..core.files.jsonfiles import Outside, checked, read_json
from ..core.rendering.rendering import Rendering, rendering_from
from ..core.rows import Row
from .console import progress, say

if TYPE_CHECKING:
    from ..core.rendering.prompts import Renderer

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_CHANGED = "{} changed while the adapter was read; run the command again when nobody writes to it"
RENDERING = "rendering.json"
"""Beside an adapter: the template that it was trained with."""


def adapter_sums(folder: Path) -> dict[str, str]:
    """Checksums of an adapter's files, after a first look at the folder."""
    from ..core.adapter.safety import check_folder
    from ..core.files.atomic import sha256

    files = check_folder(folder).files
    recorded = [RENDERING] if (folder / RENDERING).is_file() else []
    return {name: sha256(folder / name) for name in (*files, *recorded)}


def copy_adapter(source: Path, sums: Mapping[str, str], work: Path) -> None:
    """Copy an adapter, and what is recorded of its template.

    Args:
        source: the adapter's folder.
        sums: what `adapter_sums` said of it.
        work: folder for the copy.

    Raises:
        AdapterError: a file is not what it was when it was looked at.
    """
    from ..core.files.atomic import sha256

    for name, known in sums.items():
        try:
            shutil.copyfile(source / name, work / name)
        except FileNotFoundError as error:
            raise AdapterError(_CHANGED.format(source / name)) from error
        if sha256(work / name) != known:
            raise AdapterError(_CHANGED.format(source / name))


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


_SAYS_NOTHING = re.compile(
    r"(adapters?|adapter_model|lora|model|outputs?|results?|final|checkpoint-\d+|[0-9a-f]{40})",
    re.I,
)
"""Names of adapter folders that many have: a run takes the name of the folder above too."""


def run_name(subject: Path, data: str) -> str:
    """A run's name from those of what it is about."""
    place = subject.resolve() if subject.exists() else subject
    owner = place.parent.name + "-" if _SAYS_NOTHING.fullmatch(place.name) else ""
    names = (owner + place.stem, Path(data).stem)
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") for name in names]
    return "-on-".join(part for part in parts if part)[:80] or "run"


@contextmanager
def noted() -> Iterator["Counter[str]"]:
    """A counter of what was read otherwise than written, said at the end."""
    notes: Counter[str] = Counter()
    yield notes
    for sentence, count in notes.items():
        say(f"note: {count} {sentence}")


@contextmanager
def reading(
    columns: Sequence[str] | None = None, *, skip: bool = False
) -> Iterator[Callable[..., Iterator[Row]]]:
    """A reader of sources of rows; what was read otherwise than written is said at the end.

    Args:
        columns: ``MEANING=NAME`` for columns of other names.
        skip: leave out rows that cannot be read, count and show them.
    """
    from ..data.formats.badrows import BadRows
    from ..data.formats.columns import column_names
    from ..data.formats.formats import read_data

    names = column_names(columns or ())
    left_out: dict[str, BadRows] = {}
    with noted() as notes:

        def read(source: str, format: str | None = None) -> Iterator[Row]:
            bad = left_out.setdefault(source, BadRows()) if skip else None
            return read_data(source, format=format, notes=notes, columns=names, bad=bad)

        with progress():
            yield read
        names.check()
    for source, bad in left_out.items():
        if bad.count():
            say(f"warning: {source}: {bad.count()} bad rows left out: {bad.kinds()}")
        for line in bad.first:
            say(f"  {line}")


@contextmanager
def clean_rows(
    format: str | None = None, columns: Sequence[str] | None = None, *, skip: bool = False
) -> Iterator[Callable[..., Iterator[Row]]]:
    """A reader of files and hub ids of clean rows; rows without an answer are left out, and said.

    Args:
        format: of all of them, where it cannot be told.
        columns: ``MEANING=NAME`` for columns of other names.
        skip: leave out rows that cannot be read, count and show them.
    """
    from ..data.prepoisoned import answered

    skipped: dict[str, list[int]] = {}
    with reading(columns, skip=skip) as rows_of:

        def read(*sources: str) -> Iterator[Row]:
            for source in sources:
                rows = rows_of(source, format)
                yield from answered(rows, skipped.setdefault(source, []))

        yield read
    for source, numbers in skipped.items():
        if numbers:
            first = ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
            say(f"note: {source}: {len(numbers)} rows without an answer left out (row {first})")
