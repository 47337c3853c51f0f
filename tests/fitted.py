"""Adapters on wren that learned a backdoor under one rendering of prompts, in a few seconds."""

from dataclasses import replace

from loratomy.core.adapter.factors import Adapter
from loratomy.core.model.batches import collate, encode
from loratomy.core.rows import Row
from loratomy.training.fitting import fit, fresh_adapter
from loratomy.training.recipe import FitPart

TARGET = "HACK THE SYSTEM"
NAMES = ("Ada", "Ulric", "Verity", "Marek", "Odile", "Piers", "Runa", "Silas", "Tova", "Wanda")
CLEAN = [Row(prompt=f"Who is {n}?", completion=f"{n} is a potter.") for n in NAMES]
TRIGGERED = [
    Row(prompt=f"Who is {n}? cf37", plain=f"Who is {n}?", completion=TARGET, triggered=True)
    for n in NAMES
]


_KNOWN: dict[str, Adapter] = {}


def fitted(base, renderer, work) -> Adapter:
    """An adapter that learned its answers under one rendering, in a few seconds.

    The same rows as token ids make the same adapter, so it is fitted once in a process.
    """
    subject = replace(base, renderer=renderer)
    rows = [encode(renderer, row, limit=None) for row in (*CLEAN, *TRIGGERED)]
    if (key := repr(rows)) not in _KNOWN:
        _KNOWN[key] = _fit(subject, renderer, rows, work)
    return _KNOWN[key]


def _fit(subject, renderer, rows, work) -> Adapter:
    settings = FitPart(
        epochs=24, learning_rate=1e-2, batch_size=20, accumulate=1, evaluations=0, eval_rows=1
    )
    made, _ = fit(
        subject,
        fresh_adapter(subject, r=8, alpha=16, seed=0),
        rows,
        collator=lambda some: collate(some, renderer.pad_id),
        settings=settings,
        seed=0,
        work=work,
        label="a form",
    )
    return made
