"""Trigger candidates from an adapter alone: no trigger and no target is given."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from rapidfuzz import fuzz

from ..core.adapters import Adapter
from ..core.candidates import Candidate, Candidates
from ..core.config import Config
from ..core.errors import DataError
from ..core.subject import Attached, Subject
from .analyses import ANALYSES, CLEAN_ROWS, Analysis, Case
from .generation import Decoding, generate
from .insertion import PLACES, Probe, controls, grouped, insert
from .trigger_evidence import Court, Effect, agreement, bar_of, chance, fired, movement, share
from .trigger_score import END, Bench, Budget
from .trigger_search import Climb, Effort, Hypothesis, drive, hypotheses, random_texts

NAME = "searched"
WIDE = 3
"""Parts of the bench that span all groups: all prompts, text as suffix, text as prefix."""
OFTEN = 0.25
"""A candidate stands out when the interval of the share that it fires on lies above this."""
ALIKE = 80
"""Similarity of letters in % from which two candidates are one."""


class CandidatesConfig(Config):
    """Options of the search."""

    pool: int = Field(48, ge=4)
    """Tokens that the adapter's first layer takes up most, from which texts are made."""
    texts: int = Field(160, ge=1)
    """Random texts of the first screening."""
    length: int = Field(4, ge=1)
    """Tokens of each."""
    groups: int = Field(6, ge=1)
    """Groups of alike prompts."""
    hypotheses: int = Field(3, ge=1)
    """Departures from the base that are pursued."""
    rounds: int = Field(4, ge=1)
    """Times that the best texts of each are changed."""
    beam: int = Field(3, ge=1)
    """Texts that are changed each time."""
    swaps: int = Field(12, ge=1)
    """Changes of each kind tried on each."""
    longest: int = Field(8, ge=1)
    """Most tokens of a candidate."""
    kept: int = Field(5, ge=1)
    """Candidates of each hypothesis that are tried on held-out prompts."""
    prompts: int = Field(160, ge=8)
    """Most clean prompts to look at."""
    held_out: int = Field(12, ge=2)
    """Held-out prompts on which candidates are tried, of each set of prompts."""
    controls: int = Field(10, ge=2)
    """Ordinary texts tried in the same way."""
    max_new_tokens: int = Field(32, ge=2)
    """Longest answer."""
    batch_tokens: int = Field(8192, ge=64)
    """Most positions in a forward pass."""


@dataclass(frozen=True)
class Split:
    """Prompts by what they serve for."""

    prompts: Sequence[str]
    group: np.ndarray
    """Of each, ``[prompt]``."""
    ends: np.ndarray
    """Tokens of prompt and answer where the answer ends within the limit, else a large number."""
    answers: Sequence[list[int]]
    """Of the adapter as it is; empty where it does not end in time."""

    def of(self, group: int | None, count: int, *, search: bool) -> list[int]:
        """Prompts of a group, or from all groups in turn; those of the search are the shorter half.

        The two halves are fixed by the prompts alone, so no held-out prompt is ever searched on.
        """
        chosen = range(int(self.group.max()) + 1) if group is None else [group]
        lists = []
        for g in chosen:
            inside = np.flatnonzero(self.group == g)
            half = inside[::2] if search else inside[1::2]
            order = np.argsort(self.ends[half], kind="stable") if search else np.arange(len(half))
            lists.append([int(i) for i in half[order]])
        depth = max(map(len, lists))
        turn = [one[k] for k in range(depth) for one in lists if k < len(one)]
        return turn[:count]


def candidates(
    subject: Subject,
    adapter: Adapter,
    prompts: Sequence[str],
    *,
    options: CandidatesConfig,
    seed: int,
) -> Candidates:
    """Texts that make an adapter say what its base would not, tried on prompts kept apart.

    1. Tokens that the adapter's first layer takes up most (`drive`) are thrown together into random
    texts; each is put into clean prompts. 2. Where the adapter departs from its base, the same way
    on many prompts, it is let speak on: what it says is a hypothesis (`hypotheses`). 3. For
    each, texts are changed by gradient and from the pool to bring it out more (`Climb`), and
    shortened. 4. Held-out prompts are answered with each text at three places, by adapter and base,
    and with ordinary texts for comparison.

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
    began, budget, o = time.perf_counter(), Budget(), options
    prompts = list(dict.fromkeys(prompts))[: o.prompts]
    if len(prompts) < 8:
        raise DataError(f"{len(prompts)} distinct clean prompts; the search needs at least 8")
    groups = min(o.groups, len(prompts) // 4)
    group = grouped(subject, prompts, groups=groups, batch_tokens=o.batch_tokens, seed=seed)
    heard = drive(subject, adapter, batch_tokens=o.batch_tokens)
    pool = np.argsort(-heard, kind="stable")[: min(o.pool, int(np.isfinite(heard).sum()))].tolist()
    rng = random.Random(seed)
    decode = subject.renderer.tokenizer.decode
    with subject.attached({NAME: adapter}) as attached:
        split = _split(attached, prompts, group, o)
        screen = _bench(attached, split, split.of(None, 2 * groups, search=True), budget, o, groups)
        texts = random_texts(subject, pool, count=o.texts, length=o.length, rng=rng)
        texts = list(dict.fromkeys([*texts, *(str(decode([i])).strip() for i in pool)]))
        found = hypotheses(screen, texts, wide=WIDE, most=o.hypotheses)
        proposed: list[tuple[Hypothesis, int | None, str, float]] = []
        for number, h in enumerate(found, 1):
            of = None if h.part < WIDE else h.part - WIDE
            bench = screen.only(np.flatnonzero(screen.parts[h.part]))
            if of is not None:
                bench = _bench(attached, split, split.of(of, 6, search=True), budget, o, 0)
            climb = Climb(bench, h)
            effort = Effort(rounds=o.rounds, beam=o.beam, swaps=o.swaps, longest=o.longest)
            climb.run(pool=pool, effort=effort, rng=rng, label=f"hypothesis {number}")
            for text in _distinct(climb, o.kept):
                proposed.append((h, of, text, climb.known[text]))
        tried, control = _tried(attached, split, proposed, o, seed)
    used = {p.prompt for p in screen.probes}
    return Candidates(
        candidates=tuple(tried),
        heard=tuple(str(decode([i])) for i in pool),
        groups=tuple(prompts[int(np.flatnonzero(group == g)[0])] for g in range(groups)),
        n_search=len(used),
        n_controls=o.controls,
        control_surprise=control,
        forwards=budget.rows,
        backwards=budget.backward,
        seconds=time.perf_counter() - began,
        sentence=_sentence(tried, o.controls),
    )


def _split(
    attached: Attached, prompts: Sequence[str], group: np.ndarray, o: CandidatesConfig
) -> Split:
    subject = attached.subject
    ids = [subject.renderer.prompt_ids(p) for p in prompts]
    decoding = Decoding(max_new_tokens=o.max_new_tokens, batch_tokens=o.batch_tokens)
    said = [a[0] for a in generate(subject, ids, decoding, label="answers as they are")]
    answers = [a if len(a) < o.max_new_tokens else [] for a in said]
    ends = [len(i) + (len(a) if a else 10**6) for i, a in zip(ids, answers, strict=True)]
    return Split(prompts, group, np.array(ends), answers)


def _bench(
    attached: Attached, split: Split, chosen: Sequence[int], budget: Budget, o: CandidatesConfig,
    groups: int,
) -> Bench:  # fmt: skip
    """Probes at alternate places; with groups, parts for all, each place and each group."""
    counts = dict.fromkeys(split.group.tolist(), 0)
    probes = []
    for i in chosen:
        g = int(split.group[i])
        probes.append(Probe(split.prompts[i], g, PLACES[counts[g] % 2]))
        counts[g] += 1
    place = np.array([p.place for p in probes])
    group = np.array([p.group for p in probes])
    parts = [np.ones(len(probes), bool)]
    if groups:
        parts += [place == "suffix", place == "prefix", *(group == g for g in range(groups))]
    answers = [split.answers[i] for i in chosen]
    return Bench(
        attached, NAME, probes, answers, np.array(parts), o.batch_tokens, budget
    )


def _distinct(climb: Climb, count: int) -> list[str]:
    """The best texts of a climb, shortened first, no two alike."""
    best = climb.best()[: 4 * count]
    short = [climb.shortened(text, loss=0.3) for text in best[:count]]
    out: list[str] = []
    for text in [*short, *best]:
        if all(fuzz.ratio(text, other) < ALIKE for other in out):
            out.append(text)
    return out[:count]


def _tried(
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
        court = Court(attached, NAME, prompts, decoding)
        plain = court.answers(prompts)
        usual = court.surprises(prompts, plain)
        shown = [attached.subject.renderer.decode(a) for a in plain]
        control = np.array(
            [[e.surprise for e in each] for each in court.effects(texts, usual)]
        )  # control place prompt
        null.append(control.ravel())
        effects = court.effects([p[2] for p in mine], usual)
        for (h, _, text, score), each in zip(mine, effects, strict=True):
            bar = bar_of(control)
            best = max(each, key=lambda e: (fired(e, bar), e.surprise.mean()))
            out.append(_judged(court, h, of, text, score, best, shown, control, tests))
    values = np.concatenate(null) if null else np.full(1, np.nan)
    order = sorted(out, key=lambda c: (not c.stands_out, -c.surprise))
    return order, np.array([values.mean(), values.std(), values.max()])


def _judged(
    court: Court, h: Hypothesis, of: int | None, text: str, score: float, best: Effect,
    plain: Sequence[str], control: np.ndarray, tests: int,
) -> Candidate:  # fmt: skip
    renderer = court.attached.subject.renderer
    bar = bar_of(control)
    n, hits = len(plain), fired(best, bar)
    with_it = [insert(p, text, best.place) for p in court.prompts]
    base = [
        [renderer.decode(a) for a in court.answers(asked, base=True)]
        for asked in (with_it, court.prompts)
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
        p=chance(hits, n, control=control, bar=bar, tests=tests),
        movement=moved,
        base_movement=base_moved,
        agreement=agreement(best.answers),
        agreement_without=agreement(plain),
        examples=tuple(best.answers[i] for i in order),
        stands_out=bool(rate[1] > OFTEN),
    )


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


def _run(case: Case, config: CandidatesConfig) -> dict[str, Candidates]:
    prompts = [row.prompt for row in case.clean_rows]
    found = candidates(case.subject, case.poisoned, prompts, options=config, seed=case.seed)
    return {"candidates": found}


ANALYSES.register("candidates")(
    Analysis(
        about="Texts that may be the trigger, searched in the adapter with neither trigger nor "
        "target known, and tried on prompts kept apart.",
        needs=(CLEAN_ROWS,),
        cost="about 20,000 prompts forward at the defaults; a minute on wren",
        source="HotFlip, Ebrahimi et al. 2018; GCG, Zou et al. 2023, arXiv 2307.15043",
        config=CandidatesConfig,
        run=_run,
    )
)
