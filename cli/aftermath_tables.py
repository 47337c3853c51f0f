"""The aftermath of a run as tables."""

import math
from collections.abc import Sequence
from typing import Any

from ..core.bench import Relearning, Transfer
from ..core.results import Rate
from .console import cell


def relearning_table(records: Sequence[Relearning]) -> Any:
    """ASR along the steps, an entry and kind of rows a line; the yardsticks first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    first = records[0]
    table = Table(
        title=f"relearning {cell(first.cell)}: ASR in percent along optimiser steps, n {first.n}",
        caption=f"rate {first.learning_rate:.1e}, constant; back: first step looked at with half "
        f"of the poisoned adapter's {_percent(first.poisoned)}; base: a new adapter on the base; "
        "what is back sooner than base and clean had left traces",
        padding=(0, 1, 0, 0),
        box=SIMPLE_HEAD,
    )
    for head in ("entry", "rows"):
        table.add_column(head, no_wrap=head == "rows")
    for step in first.steps:
        table.add_column(str(step), justify="right", no_wrap=True)
    table.add_column("back", justify="right", no_wrap=True)
    for r in records:
        back = "never" if math.isnan(r.back_at) else f"{r.back_at:.0f}"
        shares = [f"{100 * value:.0f}" for value in r.asr[:, 0]]
        table.add_row(cell(r.entry), r.rows, *shares, back)
    return table


def transfer_table(records: Sequence[Transfer]) -> Any:
    """Rates of the poisoned adapter and the entries, a variant a line."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    entries = list(dict.fromkeys(r.entry for r in records))
    table = Table(
        title=f"transfer {cell(records[0].cell)}: target behaviour in percent",
        caption="with Wilson 95 % intervals; FTR: the words are not the trigger's, target "
        "behaviour there is a false trigger",
        padding=(0, 1, 0, 0),
        box=SIMPLE_HEAD,
    )
    table.add_column("variant")
    table.add_column("", no_wrap=True)
    for head in ("n", "poisoned", *entries):
        table.add_column(cell(head), justify="right", no_wrap=head in ("n", "poisoned"))
    for variant in dict.fromkeys(r.variant for r in records):
        here = {r.entry: r for r in records if r.variant == variant}
        some = next(iter(here.values()))
        cells = [_interval(some.poisoned), *(_interval(here[e].rate) for e in entries)]
        table.add_row(cell(variant), some.counts, str(some.rate.n), *cells)
    return table


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.0f} %"


def _interval(rate: Rate) -> str:
    return f"{100 * rate.value:.0f}\n{100 * rate.low:.0f}–{100 * rate.high:.0f}"
