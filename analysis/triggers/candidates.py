"""Trigger candidates from an adapter alone: no trigger and no target is given."""

import random
import time
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from rapidfuzz import fuzz

from ...core.adapter.factors import Adapter
from ...core.errors import DataError
from ...core.model.subject import Subject
from ...core.records.triggers import Candidate, Candidates
from ..analyses import ANALYSES, CLEAN_ROWS, Analysis
from ..material import Material
from .climb import Climb, Effort
from .insertion import grouped
from .prompts import NAME, WIDE, CandidatesConfig, probe_prompts, split_of
from .score import PassCount
from .search import Hypothesis, hypotheses, random_texts, token_uptake
from .trial import tried

ALIKE = 80
"""Similarity of letters in % from which two candidates are one."""
LOSS = 0.3
"""Nats that a whole text may lose by being shortened."""
SINGLES = 2
"""Single tokens, and cores, of each hypothesis."""


def candidates(
    subject: Subject,
    adapter: Adapter,
    prompts: Sequence[str],
    *,
    options: CandidatesConfig,
    seed: int,
) -> Candidates:
    """Texts that make an adapter answer as its base would not, tried on prompts kept apart.

    1. Random texts are made of the tokens that the adapter's first layer takes up most
    (`token_uptake`), and put into clean prompts. 2. Where the adapter departs from its base, the
    same way on many prompts, its answer is continued: a hypothesis (`hypotheses`). 3. For each,
    single tokens are scored, the whole vocabulary where it is small, and texts are changed by
    gradient and from the pool to bring it out more (`Climb`); the best are shortened, once without
    loss and once to the core that keeps half of the gain. 4. Held-out prompts are answered with
    each text at three places, by adapter and base, and with ordinary texts for comparison.

    The wording of a trigger cannot be read from the score: a backdoor listens to a part of it, and
    other texts around that part score higher than the trigger itself. So parts and whole texts are
    both listed, and of those that fire as often the shorter comes first.

    Args:
        subject: the base, without adapter.
        adapter: what is searched.
        prompts: clean ones; the more kinds of request, the better.
        options: the effort.
        seed: of everything random.

    Raises:
        DataError: too few prompts.
        AdapterError: the adapter changes nothing, or reads no residual stream.
    """
    began, budget, o = time.perf_counter(), PassCount(), options
    prompts = list(dict.fromkeys(prompts))[: o.prompts]
    if len(prompts) < 8:
        raise DataError(f"{len(prompts)} distinct clean prompts; the search needs at least 8")
    groups = min(o.groups, len(prompts) // 4)
    group = grouped(subject, prompts, groups=groups, batch_tokens=o.batch_tokens, seed=seed)
    uptake = token_uptake(subject, adapter, batch_tokens=o.batch_tokens)
    order = np.argsort(-uptake, kind="stable")[: int(np.isfinite(uptake).sum())].tolist()
    pool = order[: o.pool]
    rng = random.Random(seed)
    decode = subject.renderer.tokenizer.decode
    with subject.attached({NAME: adapter}) as attached:
        split = split_of(attached, prompts, group, o)
        screen = probe_prompts(
            attached, split, split.of(None, 2 * groups, search=True), budget, o, groups
        )
        texts = random_texts(subject, pool, count=o.texts, length=o.length, rng=rng)
        texts = list(dict.fromkeys([*texts, *(str(decode([i])).strip() for i in pool)]))
        found = hypotheses(screen, texts, wide=WIDE, most=o.hypotheses)
        proposed: list[tuple[Hypothesis, int | None, str, float]] = []
        for number, h in enumerate(found, 1):
            of = None if h.part < WIDE else h.part - WIDE
            probes = screen.only(np.flatnonzero(screen.parts[h.part]))
            if of is not None:
                probes = probe_prompts(attached, split, split.of(of, 6, search=True), budget, o, 0)
            climb = Climb(probes, h)
            singles = climb.singles(order[: o.singles], count=SINGLES)
            effort = Effort(rounds=o.rounds, beam=o.beam, swaps=o.swaps, longest=o.longest)
            climb.run(pool=pool, effort=effort, rng=rng, label=f"candidates, hypothesis {number}")
            for text in _distinct(climb, singles, o.kept):
                if all((of, text) != (p[1], p[2]) for p in proposed):
                    proposed.append((h, of, text, climb.known[text]))
        judged, control = tried(attached, split, proposed, o, seed)
    used = {p.prompt for p in screen.probes}
    return Candidates(
        candidates=tuple(judged),
        heard=tuple(str(decode([i])) for i in pool),
        groups=tuple(prompts[int(np.flatnonzero(group == g)[0])] for g in range(groups)),
        n_search=len(used),
        n_controls=o.controls,
        control_surprise=control,
        forwards=budget.rows,
        backwards=budget.backward,
        seconds=time.perf_counter() - began,
        sentence=_sentence(judged, o.controls),
    )


def _distinct(climb: Climb, singles: Sequence[str], count: int) -> list[str]:
    """Cores, single tokens and whole texts of a climb in turn, no two alike."""
    best = climb.best()[: 4 * count]
    cores = [climb.shortened(text, floor=climb.half(text)) for text in best[:SINGLES]]
    short = [climb.shortened(text, floor=climb.known[text] - LOSS) for text in best[:count]]
    turns = zip_longest(cores, singles, [*short, *best])
    out: list[str] = []
    for text in (text for turn in turns for text in turn if text is not None):
        if all(fuzz.ratio(text, other) < ALIKE for other in out):
            out.append(text)
    return out[:count]


def _sentence(found: Sequence[Candidate], controls: int) -> str:
    """The finding in words; says when nothing stands out."""
    if not found:
        return "No text made the adapter say what its base would not."
    best = found[0]
    where = f"on {best.fired} of {best.n_prompts} held-out prompts ({best.prompts_of})"
    against = f"the answer is unlike the base as it hardly is with {controls} ordinary texts"
    if not best.stands_out:
        return (
            f"No candidate stands out: with the best one, {best.text!r}, {where} {against}. This "
            "does not show that there is no trigger."
        )
    count = sum(c.stands_out for c in found)
    return (
        f"{count} of {len(found)} candidates stand out; with {best.text!r} as {best.place} {where} "
        f"{against} (mean surprise {best.surprise:.1f} nats)."
    )


def _run(material: Material, config: CandidatesConfig) -> dict[str, Candidates]:
    prompts = [row.prompt for row in material.clean_rows]
    found = candidates(
        material.subject, material.poisoned, prompts, options=config, seed=material.seed
    )
    return {"candidates": found}


ANALYSES.register("candidates")(
    Analysis(
        about="Texts that may be the trigger, searched in the adapter with neither trigger nor "
        "target known, and tried on prompts kept apart.",
        needs=(CLEAN_ROWS,),
        cost="25,000 to 30,000 prompts forward at the defaults, and the trial's answers; about a "
        "minute of CPU time on wren",
        source="HotFlip, Ebrahimi et al. 2018; GCG, Zou et al. 2023, arXiv 2307.15043",
        config=CandidatesConfig,
        run=_run,
    )
)
