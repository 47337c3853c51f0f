"""The unlearning bench as a page of Markdown: goals, leaderboard, every cell.

    loratomy bench --jobs 2 --out runs/bench
    python benchmarks/unlearning.py runs/bench/bench.parquet --note "what it was run on" \
        > benchmarks/results/unlearning.md
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from loratomy.bench.cells import Cell, attack_cells
from loratomy.bench.failures import read_notes
from loratomy.bench.goals import CUT, Tried, goals
from loratomy.bench.leaderboard import standings
from loratomy.core.records.bench import BenchRow, Goal, Standing
from loratomy.core.records.bench_table import read_bench_table


def share(value: float, low: float, high: float) -> str:
    """A rate in percent with its interval."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def mean(values: np.ndarray, *, factor: float = 100, form: str = ".1f") -> str:
    """A mean with its interval; without one where it is not defined."""
    value, low, high = (factor * float(v) for v in values)
    inside = "" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{inside}"


def goal_lines(found: Sequence[Goal]) -> list[str]:
    """The table of goals."""
    out = ["| Goal | entry | met | wanted | |", "|---|---|---|---|---|"]
    for g in found:
        met = f"{g.met.value:.0%} of {g.met.n} cells [{g.met.low:.0%}, {g.met.high:.0%}]"
        out.append(
            f"| {g.name} | {g.entry} | {met} | {g.wanted:.0%} | "
            f"{'reached' if g.reached else '**missed**'} |"
        )
    return out


def board_lines(found: Sequence[Standing]) -> list[str]:
    """The leaderboard: one table a comparison, controls beside what they control."""
    out = []
    for comparison in dict.fromkeys(s.comparison for s in found):
        here = [s for s in found if s.comparison == comparison]
        out += [
            f"\nOn {here[0].n} subjects:\n",
            "| rank | entry | control for | ASR % | perplexity % | KL | accuracy, points | s |",
            "|---" * 8 + "|",
        ]
        for s in here:
            out.append(
                f"| {s.rank} | {s.entry} | {s.control_for} | {mean(s.asr)} "
                f"| {mean(s.perplexity_change, form='+.1f')} | {mean(s.kl, factor=1, form='.3f')} "
                f"| {mean(s.accuracy_change, form='+.1f')} | {mean(s.seconds, factor=1)} |"
            )
    return out


def lower_controls(rows: Sequence[BenchRow], entry: str) -> list[str]:
    """The controls of an entry that left less of the backdoor than it did, whatever they cost."""
    known = {(r.cell, r.seed): r for r in rows if r.entry == entry}
    out = ["| subject | ASR %, perplexity % | control | ASR %, perplexity % |", "|---" * 4 + "|"]
    for r in rows:
        own = known.get((r.cell, r.seed)) if r.control_for == entry else None
        if own is not None and r.asr.value < own.asr.value:
            one, two = (
                f"{100 * x.asr.value:.0f}, {100 * x.perplexity_change:+.1f}" for x in (own, r)
            )
            out.append(f"| {r.cell} s{r.seed} | {one} | {r.entry} | {two} |")
    return out


def cell_lines(rows: Sequence[BenchRow], entries: Sequence[str]) -> list[str]:
    """ASR / change of perplexity / KL divergence of some entries, cell by cell."""
    out = [f"| cell | {' | '.join(entries)} |", "|---" * (len(entries) + 1) + "|"]
    known = {(r.cell, r.seed, r.entry): r for r in rows}
    for cell, seed in sorted({(r.cell, r.seed) for r in rows}):
        parts = []
        for entry in entries:
            r = known.get((cell, seed, entry))
            asr = r and share(r.asr.value, r.asr.low, r.asr.high)
            cost = r and f"{100 * r.perplexity_change:+.1f} / {r.kl:.3f}"
            parts.append(f"{asr} / {cost}" if r else "–")
        out.append(f"| {cell} s{seed} | {' | '.join(parts)} |")
    return out


def gave_up(folder: Path, rows: Sequence[BenchRow]) -> list[Tried]:
    """Entries that were tried in a cell of the bench and gave up there."""
    seeds = 1 + max(r.seed for r in rows)
    planted = {(c.name, c.seed): c for c in attack_cells("", seeds=seeds, out=folder)}
    subjects = sorted({(r.cell, r.seed) for r in rows})
    given = {(n, s): Cell(Path(n), n, None, s, own=True) for n, s in subjects}
    return [
        (entry, cell.name, cell.seed)
        for cell in map((given | planted).__getitem__, subjects)
        for entry, notes in read_notes(folder, cell).items()
        if entry in notes and notes[entry].tried
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path, help="bench.parquet")
    parser.add_argument("--title", default="The unlearning bench", help="of the page")
    parser.add_argument("--note", default="", help="machine, commit and command, in words")
    parser.add_argument(
        "--entries",
        default="poisoned,guided,guided-repair,guided-unknown-repair,needle,negative,crow,tsbd,finetune",
        help="entries of the table of cells",
    )
    given = parser.parse_args()
    rows = read_bench_table(given.table)
    first = rows[0]
    print(f"# {given.title}\n")
    print(given.note + "\n")
    print(
        f"Held out in each cell: {first.asr.n} triggered, {first.ftr.n} untriggered and "
        f"{first.accuracy.n} clean prompts; no method chose anything on them. Brackets are 95 % "
        "intervals: Wilson for one cell, bootstrap over cells for means. Perplexity and accuracy "
        "are changes against the poisoned adapter, KL is the divergence from it in nats per token "
        "of its own answers to clean prompts. Every row: the CSV file beside this page.\n"
    )
    print("## Goals\n")
    print("\n".join(goal_lines(goals(rows, failed=gave_up(given.table.parent, rows)))))
    print(
        f"\nAhead of every control: no control of {CUT} within +5 % perplexity has a lower ASR, "
        "and none is at least as good in both. Controls beyond +5 % do not count against it; "
        "those that left less of the backdoor than the cut:\n"
    )
    print("\n".join(lower_controls(rows, CUT)))
    print("\n## Means")
    print("\n".join(board_lines(standings(rows))))
    print("\n## Every cell\n\nASR % [95 %] / change of perplexity % / KL.\n")
    print("\n".join(cell_lines(rows, given.entries.split(","))))


if __name__ == "__main__":
    main()
