"""The aftermath of a run as tables."""

import math
from collections.abc import Sequence

from ...core.records.bench import Relearning, Transfer
from ...core.records.results import Rate
from .numbers import Numbers, folded


def relearning_table(records: Sequence[Relearning]) -> Numbers:
    """ASR along the steps, an entry and kind of rows a line; the yardsticks first."""
    first = records[0]
    rows = []
    for r in records:
        back = "never" if math.isnan(r.back_at) else f"{r.back_at:.0f}"
        rows.append((r.entry, r.rows, *(f"{100 * value:.0f}" for value in r.asr[:, 0]), back))
    return Numbers(
        ("entry", "rows", *map(str, first.steps), "back"),
        rows,
        names=2,
        title=f"relearning {first.cell}: ASR in percent along optimiser steps, n {first.n}",
        caption=f"rate {first.learning_rate:.1e}, constant; back: first step looked at with half "
        f"of the poisoned adapter's {_percent(first.poisoned)}; base: a new adapter on the base; "
        "what is back sooner than base and clean had left traces",
    )


def transfer_table(records: Sequence[Transfer]) -> Numbers:
    """Rates of the poisoned adapter and the entries, a variant a line."""
    entries = list(dict.fromkeys(r.entry for r in records))
    rows = []
    for variant in dict.fromkeys(r.variant for r in records):
        here = {r.entry: r for r in records if r.variant == variant}
        some = next(iter(here.values()))
        cells = [_interval(some.poisoned), *(_interval(here[e].rate) for e in entries)]
        rows.append((variant, some.counts, str(some.rate.n), *cells))
    return Numbers(
        ("variant", "", "n", "poisoned", *(folded(e) for e in entries)),
        rows,
        names=2,
        title=f"transfer {records[0].cell}: target behaviour in percent",
        caption="with Wilson 95 % intervals; FTR: the words are not the trigger's, target "
        "behaviour there is a false trigger",
    )


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.0f} %"


def _interval(rate: Rate) -> str:
    return f"{100 * rate.value:.0f}\n{100 * rate.low:.0f}–{100 * rate.high:.0f}"
