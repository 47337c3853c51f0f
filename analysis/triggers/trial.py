"""Candidates on held-out prompts, beside ordinary texts."""

from collections.abc import Sequence

import numpy as np

from ...core.model.subject import Attached
from ...core.records.triggers import Candidate
from ...evaluation.generation import Decoding
from .evidence import (
    HeldOutPrompts,
    TextEffect,
    agreement,
    chance,
    fired,
    movement,
    share,
    surprise_threshold,
)
from .insertion import PLACES, controls, insert
from .prompts import NAME, CandidatesConfig, Split
from .score import END
from .search import Hypothesis

OFTEN = 0.25
"""A candidate stands out when the interval of the share that it fires on lies above this."""


def tried(
    attached: Attached,
    split: Split,
    proposed: Sequence[tuple[Hypothesis, int | None, str, float]],
    o: CandidatesConfig,
    seed: int,
) -> tuple[list[Candidate], np.ndarray]:
    """The proposals on held-out prompts, best first, and the controls' surprise."""
    decoding = Decoding(max_new_tokens=o.max_new_tokens, batch_tokens=o.batch_tokens)
    texts = controls(split.prompts, count=o.controls, words=(1, 2, 3, 4), seed=seed)
    out: list[Candidate] = []
    null: list[np.ndarray] = []
    tests = max(1, len(proposed)) * len(PLACES)
    for of in dict.fromkeys(p[1] for p in proposed):
        mine = [p for p in proposed if p[1] == of]
        prompts = [split.prompts[i] for i in split.of(of, o.held_out, search=False)]
        if len(prompts) < 2:
            continue
        held_out = HeldOutPrompts(attached, NAME, prompts, decoding)
        plain = held_out.answers(prompts)
        usual = held_out.surprises(prompts, plain)
        shown = [attached.subject.renderer.decode(a) for a in plain]
        control = np.array(
            [[e.surprise for e in each] for each in held_out.effects(texts, usual)]
        )  # control place prompt
        null.append(control.ravel())
        effects = held_out.effects([p[2] for p in mine], usual)
        for (h, _, text, score), each in zip(mine, effects, strict=True):
            threshold = surprise_threshold(control)
            best = max(each, key=lambda e: (fired(e, threshold), e.surprise.mean()))
            out.append(_judged(held_out, h, of, text, score, best, shown, control, tests))
    values = np.concatenate(null) if null else np.full(1, np.nan)
    ranked = {c.text: c for c in sorted(out, key=rank, reverse=True)}  # each text at its best
    return sorted(ranked.values(), key=rank), np.array([values.mean(), values.std(), values.max()])


def rank(c: Candidate) -> tuple[bool, int, int, float]:
    """What stands out first; of that, what fires as often to a quarter by length, then surprise.

    A quarter is about what a share of twelve prompts is uncertain by.
    """
    if not c.stands_out:
        return True, 0, 0, -c.surprise
    return False, -round(4 * float(c.rate[0])), len(c.token_ids), -c.surprise


def _judged(
    held_out: HeldOutPrompts, h: Hypothesis, of: int | None, text: str, score: float,
    best: TextEffect, plain: Sequence[str], control: np.ndarray, tests: int,
) -> Candidate:  # fmt: skip
    renderer = held_out.attached.subject.renderer
    threshold = surprise_threshold(control)
    n, hits = len(plain), fired(best, threshold)
    with_it = [insert(p, text, best.place) for p in held_out.prompts]
    base = [
        [renderer.decode(a) for a in held_out.answers(prompts, base=True)]
        for prompts in (with_it, held_out.prompts)
    ]
    moved, base_moved = movement(best.answers, plain), movement(base[0], base[1])
    means = control.mean(-1).ravel()
    surprise = float(best.surprise.mean())
    spread = float(means.std())
    rate = share(hits, n)
    order = np.argsort(-best.surprise, kind="stable")[:3]
    return Candidate(
        text=text,
        token_ids=tuple(renderer.tokenizer(" " + text, add_special_tokens=False)["input_ids"]),
        place=best.place,
        prompts_of="all" if of is None else f"group {of}",
        says=str(renderer.tokenizer.decode(list(h.target))),
        at="end" if h.position == END else "start",
        search_score=score,
        fired=hits,
        n_prompts=n,
        rate=rate,
        surprise=surprise,
        z=(surprise - float(means.mean())) / spread if spread > 0 else float("nan"),
        p=chance(hits, n, control=control, threshold=threshold, tests=tests),
        movement=moved,
        base_movement=base_moved,
        agreement=agreement(best.answers),
        agreement_without=agreement(plain),
        examples=tuple(best.answers[i] for i in order),
        stands_out=bool(rate[1] > OFTEN),
    )
