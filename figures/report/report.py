"""The report: one HTML file that holds the findings, the figures, the tables and their origin."""

from dataclasses import dataclass

from ...core.records.results import RunRecords
from ..base.figure import FIGURES, Figure
from ..base.page import figure_block, page
from ..base.text import html
from .answers import answers_html
from .findings import findings
from .rendering import rendering_html
from .tables import findings_html, provenance_html, scorecard_html, subjects_html

SECTIONS = {
    "curves": "Training curves",
    "patching": "Patching maps",
    "screening": "Screened by gradients",
    "spectra": "Spectra",
    "difference": "Clean against poisoned",
    "matching": "Directions without a clean counterpart",
    "intruders": "Intruder dimensions",
    "where": "Where it lives",
    "votes": "What the methods say together",
    "probes": "Probes",
    "consistency": "Consistency of the layers",
    "attention": "Attention to the trigger",
    "effectiveness": "Answers while patched",
    "neurons": "Neurons under unlearning",
    "lens": "Tokens read and written",
    "logit_lens": "The answer, layer by layer",
    "candidates": "Trigger candidates",
    "cut": "The cut",
    "stability": "Stability of the cut",
    "tradeoff": "Trade-off",
}
"""Title of each figure's section."""
ABSENT = {
    "curves": "No training curve was recorded; adapters brought from elsewhere have none.",
    "votes": "No ranking was made that could hold the methods' votes (loratomy probe RUN --only "
    "where).",
    "cut": "No operation that cuts or trains was recorded (loratomy operate RUN guided).",
    "stability": "No cut was made again on other calibration data (loratomy operate RUN guided).",
    "tradeoff": "The subjects have not been compared on held-out prompts with a finite perplexity "
    "(loratomy compare RUN).",
}
"""What is said where records are absent that no single analysis makes."""


@dataclass(frozen=True, slots=True)
class _Section:
    """One section of the report."""

    id: str
    title: str
    body: str
    figures: tuple[Figure, ...] = ()


def report_html(records: RunRecords) -> str:
    """A whole run as one self-contained HTML document.

    Everything a model or a user wrote appears as text. The document asks the network for nothing.
    """
    sections = _sections(records)
    name = records.provenance.run
    trigger, target = (
        html(text or "none given", limit=400) for text in (records.trigger, records.target)
    )
    body = f"""<a class="skip" href="#section-findings">Skip to the findings</a>
{_contents(sections)}
<main>
<header class="top"><p class="kicker">Loratomy report</p>
<h1><bdi>{html(name, limit=120)}</bdi></h1>
<dl><dt>Trigger</dt><dd><code dir="auto">{trigger}</code></dd>
<dt>Target</dt><dd><code dir="auto">{target}</code></dd></dl>
</header>
<noscript><p class="absent">The figures need JavaScript; findings and tables do not.</p></noscript>
{"".join(_section(section) for section in sections)}
<p id="selection" role="status" hidden></p>
</main>"""
    figures = [figure for section in sections for figure in section.figures]
    return page(f"{name} · Loratomy report", body, figures)


def _sections(records: RunRecords) -> list[_Section]:
    score = scorecard_html(records)
    out = [_Section("findings", "Findings", score + findings_html(findings(records)))]
    for name, function in FIGURES.items():
        absent = (
            ABSENT.get(name)
            or f"Not made; loratomy probe RUN --only {name} makes it, or says what it needs."
        )
        figures = tuple(function(records))
        body = "\n".join(figure_block(figure) for figure in figures)
        out.append(_Section(name, SECTIONS[name], body or _absent(absent), figures))
    table = subjects_html(records)
    out.append(_Section("subjects", "Subjects", table or _absent("No subject was measured.")))
    if records.rendering is not None:
        out.append(_Section("rendering", "Prompts as rendered", rendering_html(records.rendering)))
    said = answers_html(records)
    intro = (
        '<p class="small">Triggered prompts with the answers of every subject; prompts that an '
        "operated adapter still fails come first.</p>"
    )
    absent = _absent("No answer to a triggered prompt was recorded.")
    out.append(_Section("answers", "Answers", intro + said if said else absent))
    out.append(_Section("provenance", "Provenance", provenance_html(records)))
    return out


def _absent(sentence: str) -> str:
    return f'<p class="absent">{html(sentence)}</p>'


def _section(section: _Section) -> str:
    return (
        f'<section id="section-{section.id}"><h2>{html(section.title)}</h2>\n'
        f"{section.body}\n</section>\n"
    )


def _contents(sections: list[_Section]) -> str:
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
