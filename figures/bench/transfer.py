"""What each entry of the bench does with other forms of the trigger."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from ...core.records.bench import BenchTable, Transfer
from ..base.figure import Figure
from ..base.text import percent, plural, rate
from ..base.theme import magnitude, named, panels, single, text
from .entries import bar, downward, entries, labels

FALSE = "FTR"
"""What a variant counts when target behaviour on it is a false trigger."""


def bench_transfer(table: BenchTable) -> list[Figure]:
    """Target behaviour by form of the trigger, after each entry and with the poisoned adapter."""
    found = table.transfer
    if not found:
        return []
    arrows = labels(table.rows)
    known = [e for e in entries(table.rows) if any(t.entry == e for t in found)]
    names = list(dict.fromkeys([*known, *(t.entry for t in found)]))
    forms = forms_of(found)
    cells = [
        [[t for t in found if (t.entry, t.counts, t.variant) == (e, *f)] for f in forms]
        for e in names
    ]
    written = [form_name(*form) for form in forms]
    longest = max(min(len(name), 40) for name in written)
    plot = panels(
        ["after the operation", "poisoned, the same prompts"],
        height=int(150 + 26 * max(len(names), 3) + 6.5 * longest),
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    for column, field in enumerate(("rate", "poisoned"), 1):
        plot.add_trace(_map(cells, field), row=1, col=column)
    plot.update_xaxes(**named(written, limit=40), tickangle=-90 if len(forms) > 3 else 0)
    plot.update_yaxes(**downward([arrows.get(e, e) for e in names]))
    plot.update_layout(coloraxis=bar(magnitude(1.0, "target"), tickformat=".0%"))
    subjects = len({(t.cell, t.seed) for t in found})
    return [
        Figure(
            id="bench-transfer",
            title="Other forms of the trigger",
            plot=plot,
            caption=(
                "Share of held-out prompts in % that lead to the target when the trigger is "
                f"changed, mean over {plural(subjects, 'subject')}; on the right the poisoned "
                "adapter on the same prompts. Forms marked FTR, right of the gap, hold no "
                "trigger: there the target is a false trigger. Subjects, prompts and intervals "
                "are in the hover text."
            ),
            how_to_read=(
                "What matters are forms that work with the poisoned adapter (right): after the "
                "operation they should be as dark as the trigger as trained. A form that is "
                "dark on the right was never a trigger and shows nothing."
            ),
            alt=_alt(names, written, cells),
        )
    ]


def forms_of(found: Sequence[Transfer]) -> list[tuple[str, str]]:
    """What is counted and the variant, false triggers last with an empty form before them."""
    every = list(dict.fromkeys((t.counts, t.variant) for t in found))
    false = [form for form in every if form[0] == FALSE]
    true = [form for form in every if form[0] != FALSE]
    return [*true, *[("", "")] * bool(true and false), *false]


def form_name(counts: str, variant: str) -> str:
    """Label of a form, with a mark where the target is a false trigger; untrusted text."""
    return f"{variant} (FTR)" if counts == FALSE else variant


def _map(cells: Sequence[Sequence[list[Transfer]]], field: str) -> go.Heatmap:
    values = [[_mean(items, field) for items in line] for line in cells]
    return go.Heatmap(
        z=single(values),
        hovertext=[[_said(items, field) for items in line] for line in cells],
        text=[["" if np.isnan(v) else f"{100 * v:.0f}" for v in line] for line in values],
        texttemplate="%{text}",
        hoverinfo="text",
        hoverongaps=False,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
    )


def _mean(items: Sequence[Transfer], field: str) -> float:
    return float(np.mean([getattr(t, field).value for t in items])) if items else np.nan


def _said(items: Sequence[Transfer], field: str) -> str:
    if not items:
        return ""
    rates, counts = [getattr(t, field) for t in items], text(items[0].counts)
    who = text(items[0].entry, limit=40) if field == "rate" else "poisoned"
    head = f"{who}<br>{text(items[0].variant, limit=60)}<br>"
    if len(rates) == 1:
        return f"{head}{counts} {rate(rates[0])}"
    values = [r.value for r in rates]
    return (
        f"{head}mean {counts} {percent(float(np.mean(values)))}, from {percent(min(values))} to "
        f"{percent(max(values))}<br>{plural(len(rates), 'subject')}, "
        f"{plural(sum(r.n for r in rates), 'prompt')}"
    )


def _alt(
    names: Sequence[str], written: Sequence[str], cells: Sequence[Sequence[list[Transfer]]]
) -> str:
    parts = [
        f"{entry}, {form}: {percent(_mean(items, 'rate'))} "
        f"(poisoned {percent(_mean(items, 'poisoned'))})"
        for entry, line in zip(names, cells, strict=True)
        for form, items in zip(written, line, strict=True)
        if items
    ]
    return "; ".join(parts) + "."
