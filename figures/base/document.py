"""What all pages are made of: a header, contents, sections with figures, and tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from .figure import Figure
from .page import figure_block, page
from .text import html


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a page."""

    id: str
    """Permanent name in links."""
    title: str
    """Untrusted text."""
    body: str
    """Trusted HTML, before the figures."""
    figures: tuple[Figure, ...] = ()
    """Drawn below the body."""


def document(title: str, header: str, sections: Sequence[Section]) -> str:
    """A whole self-contained page; the first section is where a keyboard can skip to.

    Args:
        title: of the window, untrusted text.
        header: trusted HTML.
        sections: in the order of the page.
    """
    first, name = sections[0].id, html(sections[0].title.lower())
    body = f"""<a class="skip" href="#section-{first}">Skip to the {name}</a>
{_contents(sections)}
<main>
<header class="top">{header}</header>
<noscript><p class="absent">The figures need JavaScript; findings and tables do not.</p></noscript>
{"".join(_section(section) for section in sections)}
<p id="selection" role="status" hidden></p>
</main>"""
    return page(title, body, [figure for section in sections for figure in section.figures])


def _section(section: Section) -> str:
    figures = "\n".join(figure_block(figure) for figure in section.figures)
    return (
        f'<section id="section-{section.id}"><h2>{html(section.title)}</h2>\n'
        f"{section.body}\n{figures}\n</section>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    items = []
    for section in sections:
        inner = "".join(
            f'<li><a href="#{figure.id}">{html(figure.title, limit=60)}</a></li>'
            for figure in section.figures
        )
        below = f"<ul>{inner}</ul>" if len(section.figures) > 1 else ""
        link = f'<a href="#section-{section.id}">{html(section.title)}</a>'
        items.append(f"<li>{link}{below}</li>")
    return (
        '<nav aria-label="Contents"><div class="bar"><strong>Contents</strong>'
        '<button type="button" id="theme" aria-label="Switch between light and dark">Dark</button>'
        f"</div><ul>{''.join(items)}</ul></nav>"
    )


def absent(sentence: str) -> str:
    """The sentence in place of something that is missing."""
    return f'<p class="absent">{html(sentence)}</p>'


def small(sentence: str) -> str:
    """A note in small print."""
    return f'<p class="small">{html(sentence)}</p>'


def kept(sentence: str) -> str:
    """Text as HTML whose percent signs stay on the line of their number."""
    return html(sentence).replace(" %", "&nbsp;%")


def table(heads: Sequence[str], rows: str, *, kind: str = "", caption: str = "") -> str:
    """A table that scrolls sideways.

    Args:
        heads: of the columns, untrusted; none: the rows have heads alone.
        rows: trusted HTML.
        kind: class of the table.
        caption: untrusted text above it.
    """
    cells = "".join(f'<th scope="col"><bdi>{kept(head)}</bdi></th>' for head in heads)
    head = f"<thead><tr>{cells}</tr></thead>" if cells else ""
    above = f"<caption>{html(caption)}</caption>" if caption else ""
    inside = f"{above}{head}<tbody>{rows}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{inside}</table></div>'


def row_head(name: str, *, limit: int = 80) -> str:
    """The cell that names its row, of untrusted text."""
    return f'<th scope="row"><bdi>{html(name, limit=limit)}</bdi></th>'
