"""Figures as files, each alone: HTML always, pictures when a browser is installed."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import LoratomyError
from ...core.files.atomic import TEMPORARY, sweep_temporaries, write_atomic
from ...core.files.outputs import check_file_out, out_path
from ...core.files.paths import REPORT
from ...core.runs.manifest import outside_runs
from .figure import Figure
from .page import OURS, PLOTLY, figure_block, page, plotly_source

FORMATS = ("html", "png", "pdf", "svg")
WIDTH, SCALE = 1000, 2
"""Width of pictures in layout pixels, and pixels of a PNG for each of them."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written and what was not."""

    written: tuple[Path, ...]
    """Files, in the order of the figures and formats."""
    skipped: tuple[str, ...]
    """Reasons, e.g. ``static export skipped: no browser``; empty when all went well."""


def write_figures(
    figures: Sequence[Figure], folder: Path, formats: Sequence[str] = ("html",)
) -> Exported:
    """Write each figure as ``<id>.<format>`` into `folder`, which is made when missing.

    The HTML files share one ``plotly.min.js`` beside them.

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
        if figures:
            written.append(write_page(plotly_source(), folder / PLOTLY))
    static = [name for name in formats if name != "html"]
    if not static or not figures:
        return Exported(tuple(written), ())
    pictures, reason = _pictures(figures, folder, static)
    return Exported((*written, *pictures), (reason,) if reason else ())


def figure_page(figure: Figure) -> str:
    """One figure as an HTML document beside the file `PLOTLY`, else as the report."""
    body = f'<main class="alone">{figure_block(figure)}</main>'
    return page(figure.title, body, [figure], beside=True)


def check_page(path: Path, *, fresh: bool = False, home: Path | None = None) -> None:
    """Raise where a page must not be written.

    Args:
        path: of the page.
        fresh: whether a file that is no page of ours may be replaced.
        home: the run whose own report it may be.

    Raises:
        LoratomyError: the folder is missing, the path is a folder, a link or no plain file, lies
            inside a run as anything but its report, or is a file that this program did not write.
    """
    out_path(path)
    if path.is_dir() and not path.is_symlink():
        raise LoratomyError(f"{path} is a folder; name a file with --out")
    check_file_out(path)
    if not path.parent.is_dir():
        raise LoratomyError(f"the folder {path.parent} does not exist; make it first")
    if home is None or path.resolve() != (home / REPORT).resolve():
        outside_runs(path)
    if path.exists() and not fresh and not _is_page(path):
        raise LoratomyError(
            f"{path} is there already and is no page that loratomy wrote; give another --out, or "
            "--fresh to replace it"
        )


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return OURS.encode() in file.read(4096)


def write_page(document: str, path: Path) -> Path:
    """Write an HTML document so that `path` holds all of it or what was there before."""
    sweep_temporaries(path.parent, older=60)
    write_atomic(path, document.encode("utf-8", "backslashreplace"))
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

    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as scratch:
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
