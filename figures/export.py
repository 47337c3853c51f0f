"""Figures as files, each alone: HTML always, pictures when a browser is there to draw them."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import LoratomyError
from .figure import Figure
from .page import figure_block, page

FORMATS = ("html", "png", "pdf", "svg")
WIDTH, SCALE = 1000, 2
"""Width of pictures in layout pixels, and pixels of a PNG for each of them."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written and what was not."""

    written: tuple[Path, ...]
    """Files, in the order of the figures and formats."""
    skipped: tuple[str, ...]
    """Reasons in words, e.g. ``static export skipped: no browser``; empty when all went well."""


def write_figures(
    figures: Sequence[Figure], folder: Path, formats: Sequence[str] = ("html",)
) -> Exported:
    """Write each figure as ``<id>.<format>`` into `folder`, which is made when missing.

    Every file appears whole or not at all. Without kaleido or a browser the pictures are skipped,
    with the reason in the result, and the HTML files are kept.

    Raises:
        LoratomyError: an unknown format, or two figures of one id.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise LoratomyError(f"unknown figure format {unknown[0]!r}; known: {', '.join(FORMATS)}")
    names = [figure.id for figure in figures]
    if len(set(names)) < len(names):
        raise LoratomyError(f"figures share an id: {', '.join(sorted(names))}")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if "html" in formats:
        written += [write_page(figure_page(f), folder / f"{f.id}.html") for f in figures]
    static = [name for name in formats if name != "html"]
    if not static or not figures:
        return Exported(tuple(written), ())
    pictures, reason = _pictures(figures, folder, static)
    return Exported((*written, *pictures), (reason,) if reason else ())


def figure_page(figure: Figure) -> str:
    """One figure as a self-contained HTML document, under the same rules as the report."""
    return page(figure.title, f'<main class="alone">{figure_block(figure)}</main>', [figure])


def write_page(document: str, path: Path) -> Path:
    """Write an HTML document so that `path` holds all of it or what was there before."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(document.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def _pictures(
    figures: Sequence[Figure], folder: Path, formats: Sequence[str]
) -> tuple[list[Path], str]:
    """Pictures drawn by one browser start, and why they are missing if they are."""
    try:
        import kaleido
    except ImportError:
        return [], "static export skipped: kaleido is not installed (pip install loratomy[static])"
    from kaleido.errors import ChromeNotFoundError

    with tempfile.TemporaryDirectory(prefix=".pictures-", dir=folder) as scratch:
        jobs = [
            (figure, kind, Path(scratch) / f"{figure.id}.{kind}", folder / f"{figure.id}.{kind}")
            for figure in figures
            for kind in formats
        ]
        specs = [_spec(figure, kind, path) for figure, kind, path, _ in jobs]
        try:
            kaleido.write_fig_from_object_sync(specs, kopts={"mathjax": False})
        except ChromeNotFoundError:
            return [], "static export skipped: no browser"
        except Exception as error:  # the browser is another program: any failure only skips
            return (
                [],
                f"static export skipped: the browser failed ({type(error).__name__}: {error})",
            )
        done = [(path, final) for _, _, path, final in jobs if path.exists()]
        for path, final in done:
            os.replace(path, final)
    missing = len(jobs) - len(done)
    reason = f"static export skipped: {missing} of {len(jobs)} pictures failed" if missing else ""
    return [final for _, final in done], reason


def _spec(figure: Figure, kind: str, path: Path) -> dict:
    size = {"width": WIDTH, "height": figure.height}
    options = {"format": kind, "scale": SCALE if kind == "png" else 1, **size}
    return {"fig": figure.plot.to_dict(), "path": path, "opts": options}
