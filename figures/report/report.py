"""The report: one HTML file that holds the findings, the figures, the tables and their origin."""

from collections.abc import Mapping

from ...core.records.results import RunRecords
from ..base.document import Section, absent, document, small
from ..base.figure import Figure, draw_sections
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
    "votes": "Agreement of the methods",
    "probes": "Probes",
    "consistency": "Consistency of the layers",
    "attention": "Attention to the trigger",
    "effectiveness": "Answers while patched",
    "vector": "A vector of few heads",
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
    "curves": "No training curve was recorded; only adapters trained here have one.",
    "votes": "No ranking compares the methods yet (loratomy probe RUN --only where).",
    "cut": "No operation that cuts or trains was recorded (loratomy operate RUN guided).",
    "stability": "No cut was made again on other calibration data (loratomy operate RUN guided "
    "--set draws=3).",
    "tradeoff": "The subjects have not been compared on held-out prompts with a finite perplexity "
    "(loratomy compare RUN).",
}
"""The sentence in place of a figure that no single analysis makes."""


def report_html(
    records: RunRecords, figures: Mapping[str, tuple[Figure, ...]] | None = None
) -> str:
    """A whole run as one self-contained HTML document.

    Everything a model or a user wrote appears as text. The document loads nothing from the
    network.

    Args:
        records: of the run.
        figures: what `draw_sections` made of them; None: they are drawn here.
    """
    name = records.provenance.run
    trigger, target = (
        html(text or "none given", limit=400) for text in (records.trigger, records.target)
    )
    header = f"""<p class="kicker">Loratomy report</p>
<h1><bdi>{html(name, limit=120)}</bdi></h1>
<dl><dt>Trigger</dt><dd><code dir="auto">{trigger}</code></dd>
<dt>Target</dt><dd><code dir="auto">{target}</code></dd></dl>
"""
    return document(
        f"{name} · Loratomy report", header, _sections(records, figures or draw_sections(records))
    )


def _sections(records: RunRecords, drawn: Mapping[str, tuple[Figure, ...]]) -> list[Section]:
    score = scorecard_html(records)
    out = [Section("findings", "Findings", score + findings_html(findings(records)))]
    for name, figures in drawn.items():
        nothing = (
            ABSENT.get(name)
            or f"Not made yet; `loratomy probe RUN --only {name}` makes it or names what it needs."
        )
        out.append(Section(name, SECTIONS[name], "" if figures else absent(nothing), figures))
    table = subjects_html(records) or absent("No subject was measured.")
    out.append(Section("subjects", "Subjects", table))
    if records.rendering is not None:
        out.append(Section("rendering", "Prompts as rendered", rendering_html(records.rendering)))
    intro = small(
        "Triggered prompts with the answers of every subject; prompts that an operated adapter "
        "still fails come first."
    )
    nothing = absent("No answer to a triggered prompt was recorded.")
    answers = answers_html(records)
    out.append(Section("answers", "Answers", intro + answers if answers else nothing))
    out.append(Section("provenance", "Provenance", provenance_html(records)))
    return out
