"""A self-contained HTML page around figures: no request leaves it and no text in it can run."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from .figure import Figure
from .text import html
from .theme import DARK, TEMPLATE


@cache
def _asset(name: str) -> str:
    path = resources.files("loratomy.figures") / "assets" / name
    return path.read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _plotly() -> str:
    return get_plotlyjs().replace("\r\n", "\n")


@cache
def _source(name: str) -> str:
    """The ``script-src`` hash of one of our two scripts."""
    script = _plotly() if name == "plotly" else _asset(name)
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def data_block(figures: Sequence[Figure]) -> str:
    """The figures as JSON that an HTML parser cannot leave: every ``<`` is written ``\\u003c``."""
    drawn = []
    for figure in figures:
        body = figure.plot.to_dict()
        body["layout"].pop("template", None)
        words = {"id": figure.id, "title": figure.title, "caption": figure.caption}
        drawn.append({**words, "data": body["data"], "layout": body["layout"]})
    content = {"dark": DARK, "template": TEMPLATE.to_plotly_json(), "figures": drawn}
    return str(to_json_plotly(content, engine="json")).replace("<", "\\u003c")


OURS = '<meta name="generator" content="loratomy">'
"""In every page, so that one of ours may be replaced and nobody else's."""


def figure_block(figure: Figure) -> str:
    """One figure with its buttons, caption, reading help and line for screen readers."""
    title, name = html(figure.title), figure.id
    buttons = "".join(
        f'<button type="button" data-save="{kind}" data-figure="{name}" '
        f'aria-label="Download {label} of {title}">{short}</button>'
        for kind, short, label in (
            ("json", "Data", "the data"),
            ("png", "PNG", "a PNG picture"),
            ("svg", "SVG", "an SVG picture"),
        )
    )
    return f"""<figure class="figure" id="{name}">
<header><h3>{title} <a class="permalink" href="#{name}" aria-label="Link to {title}">#</a></h3>
<div class="tools">{buttons}</div></header>
<div class="scroll"><div class="plot" id="plot-{name}" role="img" aria-label="{html(figure.alt)}"
 style="height:{figure.height}px"></div></div>
<figcaption><p>{html(figure.caption)}</p>
<details><summary>How to read this</summary><p>{html(figure.how_to_read)}</p></details>
<details><summary>In numbers</summary><p>{html(figure.alt)}</p></details></figcaption>
</figure>"""


PLOTLY = "plotly.min.js"
"""Beside pages that do not hold plotly themselves."""


def plotly_source() -> str:
    """The text of `PLOTLY`."""
    return _plotly()


def page(title: str, body: str, figures: Sequence[Figure], *, beside: bool = False) -> str:
    """A whole HTML document.

    Args:
        title: untrusted text.
        body: trusted HTML.
        figures: drawn into the ``plot-<id>`` elements of the body.
        beside: whether plotly is the file `PLOTLY` in the same folder, instead of in the page.
    """
    library = "'self' file:" if beside else _source("plotly")
    policy = (
        f"default-src 'none'; script-src {library} {_source('report.js')}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    plotly = f'<script src="{PLOTLY}"></script>' if beside else f"<script>{_plotly()}</script>"
    plotly = plotly if figures else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{OURS}
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html(title)}</title>
<link rel="icon" href="data:,">
<style>{_asset("report.css")}</style>
</head>
<body>
{body}
<script type="application/json" id="figures-data">{data_block(figures)}</script>
{plotly}
<script>{_asset("report.js")}</script>
</body>
</html>
"""
