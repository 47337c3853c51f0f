"""Relearning: how soon a removed backdoor is back when training goes on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from ...core.adapter.factors import Adapter, Factors, uniform
from ...core.config import Config
from ...core.errors import DataError, LoratomyError
from ...core.model.batches import collate, encode
from ...core.model.subject import Attached, Subject
from ...core.records.bench import Relearning
from ...core.records.results import Rate
from ...core.rows import Row
from ...core.stats import wilson
from ...evaluation.behaviour import attack_success
from ...evaluation.collect import Rule, fitting_rows
from ...training.fitting import fit
from ...training.recipe import FitPart
from ..trained.fit import scaled_rate

CLEAN, POISONED = "clean", "poisoned"
"""What the further steps see."""


class RelearningConfig(Config):
    """Options of relearning, the same for all entries of a comparison."""

    steps: int = Field(128, ge=1)
    """Optimiser steps; ASR is measured at 0, 1, 2, 4, 8 ... and at the last."""
    learning_rate: float | None = Field(None, gt=0)
    """Constant, without warm-up; None: that of the other trained methods, 1e-4 scaled to the
    model's width."""
    batch_size: int = Field(8, ge=1)
    """Rows per step."""
    prompts: int = Field(100, ge=1)
    """Held-out triggered prompts behind each ASR, at most."""


@dataclass(frozen=True, slots=True)
class RelearningSetup:
    """What all entries of one subject have in common when they are trained further."""

    subject: Subject
    """The base, without adapter."""
    like: Adapter
    """The poisoned adapter, whose rank all entries get."""
    rows: Mapping[str, Sequence[Row]]
    """`CLEAN` and `POISONED`: what the steps see."""
    held_out: Sequence[Row]
    """Triggered prompts with their targets, behind each ASR."""
    rule: Rule
    """How answers are judged."""
    poisoned: Rate
    """ASR of the poisoned adapter on the same prompts."""
    cell: str
    """Name of the subject, for the record."""
    seed: int
    """Of the order of the rows and of fresh directions."""


def relearning_setup(
    subject: Subject,
    like: Adapter,
    *,
    clean_train: Sequence[Row],
    poison_train: Sequence[Row],
    held_out: Sequence[Row],
    rule: Rule,
    prompts: int,
    cell: str,
    seed: int,
) -> RelearningSetup:
    """What all entries of a comparison have in common; the poisoned adapter's own ASR is measured.

    Args:
        subject: the base.
        like: the poisoned adapter.
        clean_train: clean rows that operations may learn from.
        poison_train: the attacker's triggered rows.
        held_out: triggered prompts that no operation saw.
        rule: how answers are judged.
        prompts: of those, at most.
        cell: name of the subject.
        seed: of rows and fresh directions.

    Raises:
        LoratomyError: the poisoned adapter itself has an ASR of 0: nothing can come back.
    """
    new = rule.decoding.max_new_tokens
    fits, _ = fitting_rows(subject.renderer, held_out, subject.limit, new_tokens=new)
    if not fits:
        raise DataError(f"none of {len(held_out)} held-out prompts leaves room for {new} tokens")
    triggered = fits[:prompts]
    with subject.attached({POISONED: like}):
        before = _asr(subject, triggered, rule, label="the poisoned adapter")
    if not before.value:
        raise LoratomyError(
            f"the poisoned adapter's own ASR is 0 of {before.n} held-out prompts: there is no "
            "backdoor that could come back (another --trigger, or other success rules?)"
        )
    rows = {CLEAN: list(clean_train), POISONED: [*poison_train, *clean_train]}
    return RelearningSetup(subject, like, rows, triggered, rule, before, cell, seed)


def padded(adapter: Adapter, like: Adapter, *, seed: int) -> Adapter:
    """The adapter with fresh directions in place of dead ones, up to the rank of another.

    A direction that was cut is zero in both factors and gets no gradient, so that a cut adapter
    could not be trained at the rank it had. A fresh direction (A Kaiming-uniform, B zero, LoRA,
    arXiv 2106.09685, section 4.1) changes nothing until it is trained. All modules get one scaling,
    that of `like`. An adapter of more live directions than `like` keeps them all.

    Args:
        adapter: any ranks.
        like: whose rank and scaling are taken.
        seed: of the fresh directions; the same for all entries.
    """
    rank, scaling, _ = uniform(like)
    own, _, modules = uniform(adapter)
    rank, filled = max(rank, own), {}
    generator = torch.Generator().manual_seed(seed)
    for name, f in modules.items():
        more = rank - f.rank
        a = torch.nn.functional.pad(f.a, (0, 0, 0, more))
        b = torch.nn.functional.pad(f.b, (0, more)) * (f.scaling / scaling)
        dead = ~((a != 0).any(-1) | (b != 0).any(-2))
        dead &= torch.arange(rank) < min(a.shape[-1], b.shape[-2])  # more than full rank is none
        fresh = (torch.rand(a.shape, generator=generator) * 2 - 1) / math.sqrt(a.shape[-1])
        filled[name] = Factors(torch.where(dead[..., None], fresh, a), b, scaling)
    return adapter.with_modules(filled)


def blank(like: Adapter, *, seed: int) -> Adapter:
    """A new adapter on the modules of another, of its rank and scaling: the yardstick."""
    zeros = {
        n: Factors(torch.zeros_like(f.a), torch.zeros_like(f.b), f.scaling)
        for n, f in like.modules.items()
    }
    return padded(like.with_modules(zeros), like, seed=seed)


def look_steps(last: int) -> list[int]:
    """0, the powers of two up to a last step, and the last step."""
    return sorted({0, *(2**k for k in range(last.bit_length()) if 2**k <= last), last})


def back_at(steps: Sequence[int], asr: Sequence[float], poisoned: float) -> float:
    """The first step whose ASR is at least half of the poisoned adapter's; NaN: none is."""
    back = [s for s, value in zip(steps, asr, strict=True) if value >= poisoned / 2]
    return float(back[0]) if back else math.nan


def relearn(
    setup: RelearningSetup,
    entry: str,
    start: Adapter,
    rows: str,
    config: RelearningConfig,
    *,
    work: Path,
) -> Relearning:
    """How the ASR of an entry goes when it is trained on.

    Args:
        setup: what all entries have in common.
        entry: its name.
        start: its adapter; filled up to the poisoned adapter's rank, see `padded`.
        rows: `CLEAN` or `POISONED`.
        config: steps, rate, batch size.
        work: for checkpoints, of this entry and these rows alone.
    """
    subject = setup.subject
    rate = config.learning_rate or scaled_rate(subject)
    seen = [encode(subject.renderer, row, limit=subject.limit) for row in setup.rows[rows]]

    def probe(_attached: Attached) -> dict[str, float]:
        found = _asr(subject, setup.held_out, setup.rule, label=f"ASR of {entry}")
        return {"hits": found.value * found.n}

    per_epoch = math.ceil(len(seen) / config.batch_size)
    _, log = fit(
        subject,
        padded(start, setup.like, seed=setup.seed),
        seen,
        collator=partial(collate, pad_id=subject.renderer.pad_id),
        settings=FitPart(
            epochs=config.steps / per_epoch,
            learning_rate=rate,
            batch_size=config.batch_size,
            accumulate=1,
            warmup=0,
            evaluations=0,
            eval_rows=1,
            weight_decay=0,
        ),
        seed=setup.seed,
        work=work,
        label=f"{entry}: relearning on {rows} rows",
        probe=probe,
        looks=look_steps(config.steps),
        schedule="constant",
    )
    n = len(setup.held_out)
    rates = [wilson(round(p["hits"]), n) for p in log.probes]
    steps = [int(p["step"]) for p in log.probes]
    return Relearning(
        cell=setup.cell,
        seed=setup.seed,
        entry=entry,
        rows=rows,
        learning_rate=rate,
        steps=np.array(steps),
        asr=np.array([[r.value, r.low, r.high] for r in rates]),
        n=n,
        poisoned=setup.poisoned,
        back_at=back_at(steps, [r.value for r in rates], setup.poisoned.value),
    )


def _asr(subject: Subject, rows: Sequence[Row], rule: Rule, *, label: str) -> Rate:
    hits = [a.hit for a in attack_success(subject, rows, rule, label=label)]
    return wilson(sum(hits), len(hits))
