"""Records in a line: the result first, with its count and interval."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..text import one_line
from .results import Rate


def percent(rate: Rate) -> str:
    """A rate as ``98.0 % [93.0, 99.4], n = 100``."""
    value, low, high = (100 * v for v in (rate.value, rate.low, rate.high))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}], n = {rate.n}"


def nats(row: Any) -> str:
    """The KL divergence of a row as ``0.012 [0.010, 0.015] nats per token, n = 100``."""
    if not row.kl_n:
        return "not measured"
    ends = f" [{row.kl_low:.3g}, {row.kl_high:.3g}]" if math.isfinite(row.kl_low) else ""
    return f"{row.kl:.3g}{ends} nats per token, n = {row.kl_n}"


def line_of(record: Any) -> str:
    """The result of a record in a line; text from outside shown safely."""
    if make := LINES.get(type(record).__name__):
        return one_line(make(record))
    for name in ("sentence", "summary"):
        if text := getattr(record, name, ""):
            return one_line(text)
    return one_line(_scalars(record))


def _scalars(record: Any) -> str:
    from .frames import flat

    shown = {k: v for k, v in flat(record).items() if v is not None and v != ""}
    parts = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()]
    return ", ".join(parts[:6]) or f"{type(record).__name__} without scalars"


def _behaviour(r: Any) -> str:
    return (
        f"{r.subject}: ASR {percent(r.asr)}; FTR {percent(r.ftr)}; clean accuracy "
        f"{percent(r.clean_accuracy)}; perplexity {r.perplexity:.3f}; KL {nats(r)}"
    )


def _comparison(r: Any) -> str:
    return "; ".join(f"{row.subject}: ASR {percent(row.asr)}" for row in r.rows)


def _strongest(values: np.ndarray) -> tuple[int, ...]:
    filled = np.where(np.isfinite(values), values, -np.inf)
    return tuple(int(i) for i in np.unravel_index(int(filled.argmax()), values.shape))


def _patching(r: Any) -> str:
    head = f"{r.setting}, {r.direction}, {len(r.prompts)} prompts: "
    if r.undefined or not np.isfinite(r.recovery).any():
        return head + (r.undefined or "no recovery is defined")
    site, layer, column = cell = _strongest(r.recovery)
    return head + (
        f"strongest recovery {r.recovery[cell]:.2f} [{r.low[cell]:.2f}, {r.high[cell]:.2f}] at "
        f"{r.sites[site]}, layer {layer}, {r.columns[column]}"
    )


def _spectra(r: Any) -> str:
    norm = math.sqrt(float(np.square(r.frobenius).sum()))
    name, share = "", ""
    if np.isfinite(r.share).any():
        top = int(np.nanargmax(r.share))
        name, share = r.modules[top], f"; most in {r.modules[top]} ({r.share[top]:.1%})"
    return f"{r.adapter} adapter: {len(r.modules)} modules, norm {norm:.3g}{share if name else ''}"


def _difference(r: Any) -> str:
    total = [math.sqrt(float(np.square(v).sum())) for v in (r.difference_norm, r.poisoned_norm)]
    top = int(np.nanargmax(r.difference_norm))
    return f"norm {total[0]:.3g} beside {total[1]:.3g} of the poisoned; most in {r.modules[top]}"


def _operation(r: Any) -> str:
    reached = "" if r.reached else " (its own goal is not reached)"
    return f"{r.subject}: {r.summary}{reached}"


LINES: dict[str, Callable[[Any], str]] = {
    "Rate": percent,
    "Behaviour": _behaviour,
    "Comparison": _comparison,
    "PatchingMap": _patching,
    "Spectra": _spectra,
    "Difference": _difference,
    "Operation": _operation,
    "Planted": lambda r: f"{r.verdict}: ASR {percent(r.asr)}; FTR {percent(r.ftr)}",
    "Relearning": lambda r: (
        f"{r.entry} on {r.rows} rows: back after {r.back_at:g} steps"
        if r.back_at == r.back_at
        else f"{r.entry} on {r.rows} rows: not back after {r.steps[-1]} steps"
    ),
    "Transfer": lambda r: f"{r.entry}, {r.variant}: {r.counts} {percent(r.rate)}",
    "BenchTable": lambda r: f"{len(r.rows)} rows, {sum(g.reached for g in r.goals)} goals reached",
    "Across": lambda r: " ".join(r.findings) or "no agreement and no difference is supported",
}
"""Class of a record -> its line; the others give their own sentence, or their scalars."""
