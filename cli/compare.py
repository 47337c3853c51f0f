"""`loratomy compare`: measure all subjects on the same held-out prompts."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.console import out as stdout
from ..core.console import say, say_json
from ..core.records.results import Comparison
from ..core.runs.run import Run
from ..settings import Judged
from ..study import load
from ..verbs.measuring import as_objects, load_operations, measure
from .options import Plugin
from .tables.numbers import Numbers, folded


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    scorers: Annotated[
        str | None,
        typer.Option(
            help="Success rules, comma-separated; the first one decides, e.g. 'similar,keywords,"
            "cosine >= 0.9'; default: that of the task. Answers are not generated again."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of objects instead of a table.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything again.")] = False,
    plugin: Plugin = None,
) -> None:
    """Measure base, adapters and operations on held-out prompts.

    Reports ASR on triggered prompts, FTR on the same prompts without the trigger and on clean ones,
    clean accuracy, perplexity per token, KL divergence from the poisoned adapter on its own answers
    to clean prompts, and degeneration. Rates have their n and Wilson 95 % intervals; changes
    against the poisoned adapter have McNemar's exact p and a paired bootstrap interval. Existing
    measurements are kept. The answers are in analysis/answers/*/answers.parquet, their scores in
    analysis/measured/*/scores.parquet.

    Example: loratomy compare runs/demo --json
    """
    study = load(run)
    comparison = measure(study, judged=Judged(scorers=scorers), fresh=fresh)
    show(comparison, study.run, as_json=as_json)
    if not as_json:
        say(f"next: loratomy report {run}")


def show(comparison: Comparison, run: Run, *, as_json: bool) -> None:
    """The comparison on stdout: tables, or one JSON list."""
    objects = as_objects(comparison, load_operations(run), run)
    if as_json:
        say_json(objects)
        return
    _table(comparison, objects).print(stdout)
    for line in _left_out(comparison):
        say(line)
    if len(comparison.rows[0].rules) > 1:
        _rules(comparison).print(stdout)
    if comparison.paired:
        _paired(comparison).print(stdout)


def _table(comparison: Comparison, objects: list[dict[str, Any]]) -> Numbers:
    first, protocol = comparison.rows[0], comparison.protocol
    cuts = any(item["directions_cut"] for item in objects)
    rows = [
        (
            item["subject"],
            _share(item["asr"]),
            _share(item["ftr"]),
            f"{item['perplexity']:.3f}\n{item['perplexity_change']:+.1%}",
            _nats(item["kl"], item["kl_low"], item["kl_high"]),
            _share(item["clean_accuracy"]),
            _share(item["degenerate"]),
            *([str(item["directions_cut"])] if cuts else []),
        )
        for item in objects
    ]
    heads = ["subject", "ASR", "FTR", "perplexity", "KL", "accuracy", "degen."]
    return Numbers(
        [*heads, "cut"] if cuts else heads,
        rows,
        title=f"n: ASR {first.asr.n}, FTR {first.ftr.n}, accuracy {first.clean_accuracy.n}, "
        f"KL {first.kl_n}",
        caption=f"percent, with Wilson 95 % intervals; success: {protocol.rule}; "
        f"{protocol.decoding}; embeddings: {protocol.embedder}; accuracy: the row's key in "
        f"the answer, else similarity >= {protocol.threshold:g} to the reference "
        f"({protocol.references}); perplexity per completion token, and its change; KL: "
        "divergence from the poisoned adapter on its own greedy answers to the clean prompts, nats "
        "per token, with its bootstrap interval over prompts"
        "; degen.: clean answers that are empty, repeat themselves, or are far from the poisoned "
        "adapter's (from the references for base, clean and poisoned)"
        + ("; cut: directions" if cuts else ""),
    )


def _nats(value: float, low: float, high: float) -> str:
    """KL divergence with its interval below, where it has one; a dash where it is undefined."""
    shown = [f"{v:.4f}"[1:] if v < 0.99995 else f"{v:.3g}" for v in (value, low, high)]
    ends = f"\n{shown[1]}–{shown[2]}" if math.isfinite(low) and math.isfinite(high) else ""
    return "–" if math.isnan(value) else shown[0] + ends


def _share(rate: dict[str, Any]) -> str:
    value, low, high = (100 * rate[key] for key in ("value", "low", "high"))
    return f"{value:.1f}\n{low:.1f}–{high:.1f}"


def _left_out(comparison: Comparison) -> list[str]:
    """What is not in the rates, or another reading of them, a line each."""
    from ..figures.base.text import two_readings

    lines = []
    for row in comparison.rows:
        lines += [f"note: {line}" for line in two_readings(row)]
        if row.too_long:
            lines.append(f"note: {row.subject}: {row.too_long} prompts left out, too long")
        if row.rules[0].uninformative:
            lines.append(
                f"note: {row.subject}: {row.rules[0].uninformative} untriggered prompts left out "
                "of FTR, their reference is itself a success or there is no target to compare with"
            )
    return lines


def _rules(comparison: Comparison) -> Numbers:
    rows = [
        (
            row.subject,
            *(f"{100 * r.asr.value:.1f} / {100 * r.ftr.value:.1f}" for r in row.rules),
        )
        for row in comparison.rows
    ]
    rules = [folded(rule.rule) for rule in comparison.rows[0].rules]
    return Numbers(
        ("subject", *rules),
        rows,
        title="ASR / FTR by every rule, percent",
        caption="the first rule decides the figures above",
    )


def _paired(comparison: Comparison) -> Numbers:
    rows = []
    for pair in comparison.paired:
        change, low, high = (
            100 * v for v in (pair.perplexity_change, pair.perplexity_low, pair.perplexity_high)
        )
        rows.append(
            (
                pair.subject,
                f"-{pair.asr_lost} +{pair.asr_gained}",
                _p(pair.asr_p),
                f"-{pair.accuracy_lost} +{pair.accuracy_gained}",
                _p(pair.accuracy_p),
                f"{change:+.1f} [{low:+.1f}, {high:+.1f}]",
            )
        )
    return Numbers(
        ("subject", "attacks", "p", "right", "p", "perplexity %"),
        rows,
        title=f"against {comparison.paired[0].reference}, on the same prompts",
        caption="attacks and right answers lost and gained, McNemar's exact p; perplexity change "
        "with its paired bootstrap interval",
    )


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"
