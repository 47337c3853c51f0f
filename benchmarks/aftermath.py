"""What happens after removal, on all subjects of a bench, as a page of Markdown.

    loratomy bench --aftermath guided,guided-repair,negative --out runs/bench ...
    python benchmarks/aftermath.py runs/bench --note "what it was run on" \
        > benchmarks/results/aftermath.md
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from loratomy.core.records.bench import Relearning, Transfer
from loratomy.core.runs.folder import RunFolder
from loratomy.verbs.aftermath import load_aftermath

NEVER = "–"


def back(curve: Relearning) -> str:
    """The step from which half of the poisoned adapter's ASR is back."""
    return NEVER if math.isnan(curve.back_at) else f"{curve.back_at:.0f}"


def highest(curve: Relearning) -> str:
    """The highest ASR along the steps, with the interval of that look."""
    value, low, high = 100 * curve.asr[np.argmax(curve.asr[:, 0])]
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def curves(records: Sequence[Relearning], say: Callable[[Relearning], str]) -> list[str]:
    """A table of one figure a curve: entries down, subjects across."""
    cells = list(dict.fromkeys((r.cell, r.seed) for r in records))
    out = [
        f"| entry | {' | '.join(f'{c} s{s}' for c, s in cells)} |",
        "|---" * (len(cells) + 1) + "|",
    ]
    for entry in dict.fromkeys(r.entry for r in records):
        known = {(r.cell, r.seed): say(r) for r in records if r.entry == entry}
        out.append(f"| {entry} | {' | '.join(known.get(cell, '') for cell in cells)} |")
    return out


def kind(variant: str) -> str:
    """Variants of which each subject has others of its own, under one name."""
    return variant.split(":")[0]


def rates(records: Sequence[Transfer]) -> list[str]:
    """Kind of variant by entry: the mean rate over subjects and variants, and the highest one."""
    entries = list(dict.fromkeys(r.entry for r in records))
    out = [
        f"| variant | | asked | poisoned | {' | '.join(entries)} |",
        "|---" * (len(entries) + 4) + "|",
    ]
    for name, counts in dict.fromkeys((kind(r.variant), r.counts) for r in records):
        here = [r for r in records if (kind(r.variant), r.counts) == (name, counts)]
        one = [r for r in here if r.entry == entries[0]]
        asked = f"{len({(r.cell, r.seed) for r in one})} subjects, {sum(r.rate.n for r in one)}"
        values: list[Any] = [[r.poisoned.value for r in one]]
        values += [[r.rate.value for r in here if r.entry == entry] for entry in entries]
        shown = [f"{100 * np.mean(v):.1f}, {100 * max(v):.0f}" if v else "" for v in values]
        out.append(f"| {name} | {counts} | {asked} | {' | '.join(shown)} |")
    return out


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bench", type=Path, help="folder of a bench made with --aftermath")
    parser.add_argument("--note", default="", help="what it was run on")
    asked = parser.parse_args()
    relearned: list[Relearning] = []
    transferred: list[Transfer] = []
    for folder in sorted((asked.bench / "cells").iterdir()):
        more, others = load_aftermath(RunFolder.open(folder))
        relearned += more
        transferred += others
    if not relearned and not transferred:
        raise SystemExit(f"{asked.bench}: no aftermath there; make the bench with --aftermath")
    poisoned = [r for r in relearned if r.rows == "poisoned"]
    clean = [r for r in relearned if r.rows == "clean"]
    parts = ["# After removal\n"]
    if asked.note:
        parts.append(asked.note + "\n")
    if relearned:
        first = relearned[0]
        looks = ", ".join(str(step) for step in first.steps)
        parts += [
            f"Looked at after {looks} steps on {first.n} held-out prompts, at a constant rate of "
            f"{first.learning_rate:.1e}. `base` is a new adapter on the base, `clean` the clean "
            "adapter: what is back sooner than they learn it had left traces.\n",
            f"## Steps on the attacker's rows until half of the ASR is back ({NEVER}: never)\n",
            *curves(poisoned, back),
            "\n## Steps on clean rows: highest ASR on the way, %\n",
            *curves(clean, highest),
        ]
    if transferred:
        parts += [
            "\n## Other forms of the trigger, and words that are none\n",
            "Target behaviour in %: mean over subjects and variants, then the highest of them. "
            "ASR: the trigger's own words stand in the prompt; FTR: they do not.\n",
            *rates(transferred),
        ]
    print("\n".join(parts))


if __name__ == "__main__":
    main()
