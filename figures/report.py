"""The report: one HTML file that holds the findings, the figures, the tables and their origin."""

from dataclasses import dataclass

from ..core.results import RunRecords
from .answers import answers_html
from .figure import FIGURES, Figure
from .findings import findings
from .page import figure_block, page
from .rendering import rendering_html
from .tables import findings_html, provenance_html, scorecard_html, subjects_html
from .words import html

SECTIONS = {
    "curves": (
        "Training curves",
        "No training curve was recorded; adapters brought from elsewhere have none.",
    ),
    "patching": ("Patching maps", "Activation patching has not been run."),
    "screening": (
        "Screened by gradients",
        "The cells were not screened by gradients (loratomy probe RUN --only screening).",
    ),
    "spectra": ("Spectra", "The adapters' spectra have not been computed."),
    "difference": (
        "Clean against poisoned",
        "The adapters were not compared; this needs a clean adapter beside the poisoned one.",
    ),
    "matching": (
        "Directions without a clean counterpart",
        "Directions were not matched; this needs a clean adapter beside the poisoned one.",
    ),
    "intruders": (
        "Intruder dimensions",
        "The changed weights were not searched for intruder dimensions.",
    ),
    "where": ("Where it lives", "Layers, modules and directions have not been ranked."),
    "votes": (
        "What the methods say together",
        "No ranking was made that could hold the methods' votes.",
    ),
    "probes": (
        "Probes",
        "No probe was asked whether prompts are triggered; this needs the trigger.",
    ),
    "consistency": (
        "Consistency of the layers",
        "The layers' turns were not compared with and without the trigger; this needs the trigger.",
    ),
    "attention": (
        "Attention to the trigger",
        "Attention to the trigger was not read; this needs the trigger.",
    ),
    "effectiveness": (
        "Answers while patched",
        "No answer was generated with layers patched; this needs the trigger.",
    ),
    "neurons": (
        "Neurons under unlearning",
        "No unlearning was tried to see which neurons it changes; this needs the trigger.",
    ),
    "lens": (
        "Tokens read and written",
        "What the adapter listens for and writes has not been read.",
    ),
    "logit_lens": (
        "The answer, layer by layer",
        "The layers were not asked for the target; this needs the trigger.",
    ),
    "candidates": (
        "Trigger candidates",
        "No trigger was searched for in the adapter.",
    ),
    "cut": ("The cut", "No operation that cuts directions or trains was recorded."),
    "stability": ("Stability of the cut", "No cut was made again on other calibration data."),
    "tradeoff": (
        "Trade-off",
        "The subjects have not been compared on held-out prompts with a finite perplexity.",
    ),
}
"""Title of each figure's section, and what is said when its records are absent."""


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
    body = f"""<a class="skip" href="#section-findings">Skip to the findings</a>
{_contents(sections)}
<main>
<header class="top"><p class="kicker">Loratomy report</p>
<h1><bdi>{html(name, limit=120)}</bdi></h1>
<dl><dt>Trigger</dt><dd><code dir="auto">{html(records.trigger, limit=400)}</code></dd>
<dt>Target</dt><dd><code dir="auto">{html(records.target, limit=400)}</code></dd></dl>
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
        title, absent = SECTIONS.get(name, (name.capitalize(), "Nothing was recorded."))
        figures = tuple(function(records))
        body = "\n".join(figure_block(figure) for figure in figures)
        out.append(_Section(name, title, body or _absent(absent), figures))
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
