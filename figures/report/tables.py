"""The tables of the report as HTML: findings, scorecard, subjects, provenance."""

import math
from collections.abc import Sequence

from ...core.records.results import Behaviour, Paired, Rate, RunRecords, Setting
from ..base.document import absent, kept, row_head, small, table
from ..base.text import change, html, interval, number, percent, plural
from ..unlearning.tradeoff import relative
from .findings import QUESTIONS, Finding, goals, is_control, row_of

SIGNS = {"pass": "✓", "fail": "✗", "found": "!", "absent": "○", "not measured": "–", "note": "·"}


def findings_html(found: list[Finding]) -> str:
    """The findings under their four questions."""
    out = []
    for question, title in QUESTIONS.items():
        items = "\n".join(_finding(item) for item in found if item.question == question)
        if items:
            out.append(f'<h3>{html(title)}</h3>\n<ul class="findings">{items}</ul>')
    return "\n".join(out)


def _finding(item: Finding) -> str:
    kind = item.verdict.replace(" ", "-")
    sign = f'<span aria-hidden="true">{SIGNS[item.verdict]}</span>'
    return (
        f'<li class="{kind}"><span class="verdict">{sign} {item.verdict}</span> '
        f"<span>{kept(item.sentence)}</span></li>"
    )


def scorecard_html(records: RunRecords) -> str:
    """Operations against goals; empty when no operation was measured."""
    if records.comparison is None:
        return ""
    moved = relative(records.comparison.rows)
    found = [row_of(records, i.subject) for i in records.operations if not is_control(i)]
    rows = [row for row in found if row is not None]
    cards = [(row, goals(row, moved[row.subject], records.goals)) for row in rows]
    if not cards:
        return ""
    body = "".join(
        f"<tr>{row_head(row.subject)}"
        + "".join(f'<td class="{v.replace(" ", "-")}">{SIGNS[v]} {v}</td>' for _, v in checks)
        + "</tr>"
        for row, checks in cards
    )
    heads = ["Operation", *(words for words, _ in cards[0][1])]
    return table(heads, body, kind="scorecard", caption="Operations against the goals")


def _rate(value: Rate, more: str = "") -> str:
    low, high = (percent(v).removesuffix(" %") for v in (value.low, value.high))
    return (
        f'<td class="num">{percent(value.value)}'
        f"<small>[{low}, {high}] n&nbsp;=&nbsp;{value.n}</small>{more}</td>"
    )


def subjects_html(records: RunRecords) -> str:
    """Every subject with value, interval and count; empty when nothing was measured."""
    if records.comparison is None or not records.comparison.rows:
        return ""
    moved = relative(records.comparison.rows)
    pairs = {pair.subject: pair for pair in records.comparison.paired}
    body = "".join(
        _subject(row, moved[row.subject], pairs.get(row.subject)) for row in records.comparison.rows
    )
    heads = ("Subject", "ASR", "FTR", "Clean accuracy", "Perplexity", "Change", "KL", "Degenerate")
    protocol = records.comparison.protocol
    rules = sorted({row.accuracy_rule for row in records.comparison.rows})
    notes = (
        f"Prompts: {protocol.template}; task {protocol.task}; an answer counts as the target by "
        f"the rule: {protocol.rule} (similar: from {number(protocol.threshold)}; embedder: "
        f"{protocol.embedder}); {protocol.decoding}; {protocol.dtype}. Clean "
        f"references: {protocol.references}. Correct: "
        f"{'; '.join(rules)}. Brackets: Wilson 95 % intervals. Change: perplexity relative to "
        "the suspicious adapter, with its paired bootstrap interval; p: McNemar's exact test "
        "against it on the same prompts. KL: divergence from the suspicious adapter on its own "
        "greedy answers to the clean prompts, nats per token, with its bootstrap interval over "
        "prompts. Degenerate: answers to clean prompts that are empty, "
        "repeating or far from those before the operation."
    )
    left_out = [row for row in records.comparison.rows if row.too_long]
    if left_out:
        counts = ", ".join(f"{row.subject} {row.too_long}" for row in left_out)
        notes += f" Prompts left out as longer than the context: {counts}."
    first = html(protocol.first_prompt + protocol.first_completion, newlines=True)
    return (
        f"{table(heads, body, kind='subjects')}{_rules(records.comparison.rows)}{small(notes)}"
        "<details><summary>First triggered prompt and its target as the model reads them</summary>"
        f'<pre dir="auto">{first}</pre></details>'
    )


def _subject(row: Behaviour, moved: float, pair: Paired | None) -> str:
    detail = f"{row.empty} empty, {row.repeating} repeating, {row.far} far"
    cost, asr_p, right_p = "", "", ""
    if pair is not None:
        low, high = (percent(v, signed=True) for v in (pair.perplexity_low, pair.perplexity_high))
        cost = f"{change(moved)}<small>[{low}, {high}]</small>"
        asr_p, right_p = (f"<small>{_p(v)}</small>" for v in (pair.asr_p, pair.accuracy_p))
    return (
        f"<tr>{row_head(row.subject)}"
        f"{_rate(row.asr, asr_p)}{_rate(row.ftr)}{_rate(row.clean_accuracy, right_p)}"
        f'<td class="num">{number(row.perplexity, digits=4)}'
        f"<small>{plural(row.perplexity_tokens, 'token')}</small></td>"
        f'<td class="num">{cost}</td><td class="num">{_kl(row)}</td>'
        f'<td class="num">{percent(row.degenerate.value)}'
        f"<small>{detail} of {row.degenerate.n}</small></td></tr>"
    )


def _kl(row: Behaviour) -> str:
    """KL divergence with its interval, prompts and tokens."""
    if not row.kl_n:
        return ""
    ends = f"{interval(row.kl_low, row.kl_high)} " if math.isfinite(row.kl_low) else ""
    return (
        f"{number(row.kl)}<small>{ends}n&nbsp;=&nbsp;{row.kl_n}</small>"
        f"<small>{plural(row.kl_tokens, 'token')}</small>"
    )


def _p(value: float) -> str:
    return "p &lt; 0.001" if value < 0.001 else f"p = {value:.3f}"


def _rules(rows: tuple[Behaviour, ...]) -> str:
    """ASR and FTR by every rule that was requested; empty when there is one."""
    if len(rows[0].rules) < 2:
        return ""
    body = "".join(
        f"<tr>{row_head(row.subject)}"
        + "".join(_rate(r.asr, f"<small>FTR {percent(r.ftr.value)}</small>") for r in row.rules)
        + "</tr>"
        for row in rows
    )
    heads = ["Subject", *(r.rule for r in rows[0].rules)]
    caption = "ASR by every rule; the first decides"
    return table(heads, body, kind="subjects", caption=caption)


def provenance_html(records: RunRecords) -> str:
    """The exact command and every recorded fact."""
    source = records.provenance
    command = html(source.command, newlines=True)
    return f"<pre><code>{command}</code></pre>{facts_html(source.facts)}"


def facts_html(facts: Sequence[Setting]) -> str:
    """Names and values of where something comes from."""
    if not facts:
        return absent("No facts were recorded.")
    rows = "".join(
        f'<tr><th scope="row">{html(fact.name)}</th><td><bdi>{html(fact.value)}</bdi></td></tr>'
        for fact in facts
    )
    return table((), rows, kind="facts")
