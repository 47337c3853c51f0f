"""Answers: a few triggered prompts with the answer of every subject."""

from dataclasses import dataclass

from ...core.records.results import Answer, RunRecords
from ..base.document import row_head, table
from ..base.text import html

PROMPTS = 6
"""Prompts shown in all."""
LONGEST = 700
"""Characters of an answer that are shown."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One triggered prompt and the answers to it, in the order of the comparison."""

    prompt: str
    """As it was before rendering; untrusted."""
    reference: str
    """The target; untrusted."""
    answers: tuple[Answer, ...]
    """One per subject."""


def exchanges(records: RunRecords, *, most: int = PROMPTS) -> list[Exchange]:
    """Up to `most` triggered prompts, those that an operated adapter still fails first.

    Showing failures first keeps a lucky selection out of the report.
    """
    order = [row.subject for row in records.comparison.rows] if records.comparison else []
    grouped: dict[str, dict[str, Answer]] = {}
    for answer in records.answers:
        if answer.split == "triggered":
            grouped.setdefault(answer.prompt, {}).setdefault(answer.subject, answer)
    usual = {"base", "clean", "poisoned"}
    found = []
    for prompt, by in grouped.items():
        names = sorted(by, key=lambda s: order.index(s) if s in order else len(order))
        found.append(Exchange(prompt, by[names[0]].target, tuple(by[n] for n in names)))

    def failures(item: Exchange) -> int:
        return sum(a.hit for a in item.answers if a.subject not in usual)

    return sorted(found, key=lambda item: -failures(item))[:most]


def answers_html(records: RunRecords) -> str:
    """The exchanges as HTML, every text escaped; empty when there are none."""
    return "\n".join(_exchange(item) for item in exchanges(records))


def _exchange(item: Exchange) -> str:
    rows = "\n".join(_row(answer) for answer in item.answers)
    prompt = html(item.prompt, limit=LONGEST, newlines=True)
    return (
        '<article class="exchange">'
        f'<p class="turn"><span class="who">Prompt</span> <bdi>{prompt}</bdi></p>'
        f'<p class="turn"><span class="who">Target</span> '
        f"<bdi>{html(item.reference, limit=LONGEST, newlines=True)}</bdi></p>"
        f"{table(('Subject', 'Target?', 'Answer'), rows)}</article>"
    )


def _row(answer: Answer) -> str:
    body = html(answer.answer, limit=LONGEST, newlines=True)
    if not answer.answer:
        body = "<em>empty</em>"
    mark = '<span class="hit">✗ yes</span>' if answer.hit else '<span class="no-hit">no</span>'
    return (
        f"<tr>{row_head(answer.subject)}"
        f'<td>{mark}</td><td class="answer"><bdi>{body}</bdi></td></tr>'
    )
