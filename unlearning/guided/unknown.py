"""Guided surgery without the trigger: against texts that make the adapter answer unlike its base.

Random texts of the tokens that the adapter's first layer takes up most (`token_uptake`) are put
into clean prompts; neither trigger nor target is needed. Some make the adapter give an answer that
is far more surprising to its base than answers to ordinary texts are. Those prompts take the place
of triggered rows, with the adapter's own answer as the target and its answer without the text as
the natural one; everything else is guided surgery. A backdoor reacts to parts of its trigger and to
texts around them, so that the cut removes what the adapter reacts to, whatever the exact wording.
Where too few random texts act, the full search for candidates (`analysis.triggers`) proposes the
texts. The true trigger may be stronger than any text that was found, so that what stops these need
not stop it: the cut goes on in the learned order until half of what the adapter gained on clean
rows is gone, and `repair`, which needs no trigger either, wins that back (cut wide and fit again,
as fine-pruning does with neurons that are inactive on clean data: Liu et al. 2018, arXiv
1805.12185).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from pydantic import Field

from ...analysis.material import Material
from ...analysis.triggers.candidates import candidates
from ...analysis.triggers.evidence import HeldOutPrompts, surprise_threshold
from ...analysis.triggers.insertion import PLACES, controls, insert
from ...analysis.triggers.prompts import CandidatesConfig
from ...analysis.triggers.search import random_texts, token_uptake
from ...core.errors import DataError
from ...core.model.variant import Treated, treated
from ...core.rows import Row
from ...evaluation.generation import Decoding
from ...evaluation.perplexity import perplexity
from ...evaluation.success import parse_rules
from ..budget import Budget
from ..calibration import Judge, halves
from ..method import CLEAN_ROWS, CUT, GRADIENTS, METHODS, Method, Outcome
from .guided import GuidedConfig, operated
from .made import made_rows

NAME = "suspect"
GAIN_SHARE = 0.5
"""Share of the adapter's gain on clean rows that a cut without a budget may cost."""
LEAST_BUDGET = 0.05
"""Least rise of perplexity that it may cost, however little the adapter gained."""
ENOUGH = 8
"""Prompts that must have fired in the end; with fewer nothing is cut."""
RULE = "substring or fuzzy >= 0.8"
"""When an answer counts as a found target again."""


class UnknownConfig(GuidedConfig):
    """Options of `guided-unknown`; the search for candidates has its own, below `candidates`."""

    budget: Budget | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """What the cut may cost on clean calibration rows; None: half of what the adapter gained in
    perplexity there (`wide_budget`), for `repair` to win back. For a cut without repair give what
    it may cost (--budget 5%)."""
    spend: float = Field(1.0, ge=0, le=1)
    """Share of the budget that the cut may use beyond what stops the texts that were found."""
    pool: int = Field(48, ge=4)
    """Tokens that the adapter's first layer takes up most, from which texts are made."""
    texts: int = Field(160, ge=1)
    """Random texts made of these tokens, besides the single tokens."""
    length: int = Field(4, ge=1)
    """Tokens of each random text."""
    each: int = Field(4, ge=1)
    """Clean prompts that every text is put into, at its places in turn."""
    most: int = Field(128, ge=4)
    """At most this many prompts with an acting text are used, from as many texts as possible."""
    least: int = Field(24, ge=4)
    """Prompts on which random texts must act; with fewer, run the full search for candidates."""
    candidates: CandidatesConfig = CandidatesConfig()  # pyright: ignore[reportCallIssue]
    """Effort of the full search (loratomy analyses candidates)."""


@dataclass(frozen=True, slots=True)
class StandIns:
    """Rows that take the place of triggered ones."""

    rows: list[Row]
    texts: tuple[str, ...]
    """Those in them."""
    tried: int
    """Prompts with a text in them that were tried."""
    fired: int
    """Those of them on which the adapter answered unlike its base."""


def texts_to_try(material: Material, config: UnknownConfig) -> list[str]:
    """Random texts of the tokens that the adapter takes up most, and these one by one."""
    subject = material.subject
    uptake = token_uptake(subject, material.start, batch_tokens=material.rule.decoding.batch_tokens)
    order = np.argsort(-uptake, kind="stable")[: int(np.isfinite(uptake).sum())]
    pool = order[: config.pool].tolist()
    rng = random.Random(material.seed)
    made = random_texts(subject, pool, count=config.texts, length=config.length, rng=rng)
    singles = [str(subject.renderer.tokenizer.decode([i])).strip() for i in pool]
    return list(dict.fromkeys(text for text in [*made, *singles] if text))


def stand_ins(
    material: Material, prompts: Sequence[str], texts: Sequence[str], config: UnknownConfig
) -> StandIns:
    """Clean prompts with texts on which the adapter answers unlike its base.

    Each text is put into some of the prompts. One counts when its answer's surprise, log p(adapter)
    - log p(base) beyond that without the text, lies above the threshold from ordinary texts
    (`surprise_threshold`), and the answer differs from that without it.
    """
    prompts = list(dict.fromkeys(prompts))
    random.Random(material.seed).shuffle(prompts)
    subject, given = material.subject, material.rule.decoding
    decoding = Decoding(max_new_tokens=given.max_new_tokens, batch_tokens=given.batch_tokens)
    pairs = [
        (t, (i * config.each + k) % len(prompts), PLACES[(i + k) % len(PLACES)])
        for i, t in enumerate(texts)
        for k in range(config.each)
    ]
    ordinary = controls(prompts, count=4, words=(1, 2, 3, 4), seed=material.seed)
    with subject.attached({NAME: material.start}) as attached:
        held_out = HeldOutPrompts(attached, NAME, prompts, decoding)
        plain = held_out.answers(prompts)
        usual = held_out.surprises(prompts, plain)
        few = range(min(48, len(prompts)))
        control = [insert(prompts[k], ordinary[k % 4], PLACES[k % 3]) for k in few]
        threshold = surprise_threshold(
            held_out.surprises(control, held_out.answers(control)) - usual[: len(control)]
        )
        tried = [insert(prompts[k], text, place) for text, k, place in pairs]
        answers = held_out.answers(tried)
        surprise = held_out.surprises(tried, answers) - usual[[k for _, k, _ in pairs]]
    decode = subject.renderer.decode
    found: dict[str, list[Row]] = {}
    for (text, k, _), full, answer, extra in zip(pairs, tried, answers, surprise, strict=True):
        now, before = decode(answer), decode(plain[k])
        if extra > threshold and (target := _added(now, before)):
            row = Row(
                prompt=full,
                plain=prompts[k],
                completion=now,
                target=target,
                benign=before,
                triggered=True,
            )
            found.setdefault(text, []).append(row)
    turns = zip_longest(*found.values())
    rows = [row for turn in turns for row in turn if row is not None]
    return StandIns(rows[: config.most], tuple(found), len(pairs), len(rows))


def _added(answer: str, plain: str) -> str:
    """What an answer adds to the plain one, else the whole of it; empty when they are equal."""
    if answer.startswith(plain) and plain:
        return answer[len(plain) :].strip()
    return "" if answer == plain else answer


def wide_budget(material: Material, config: UnknownConfig, *, known: bool) -> float:
    """Rise of perplexity on clean rows of the operation with which half of its gain is lost.

    ``(perplexity of the base / that of the adapter)^GAIN_SHARE - 1``: half of the nats per token by
    which the adapter is better, whatever the model and the task; where it is hardly better,
    `LEAST_BUDGET`. Of rows that the adapter knows by heart half of the KL divergence of the base
    from the adapter takes the place of these nats, as in the search (`Utility`).
    """
    _, rows = halves(material.clean_rows, config.rows)
    if known:
        judge = Judge(material.subject, (), rows, material.rule, material.start)
        return max(math.exp(GAIN_SHARE * judge.kl(Treated(None))) - 1, LEAST_BUDGET)
    at_once = material.rule.decoding.batch_tokens // 4
    found = []
    for adapter in (None, material.start):
        with treated(material.subject, Treated(adapter)):
            found.append(perplexity(material.subject, rows, batch_tokens=at_once)[0])
    return max((found[0] / found[1]) ** GAIN_SHARE - 1, LEAST_BUDGET)


def guided_unknown(material: Material, config: UnknownConfig) -> Outcome:
    """Guided surgery against texts found in the adapter alone.

    Raises:
        DataError: too few prompts on which the adapter answers unlike its base.
    """
    made = made_rows(material, (), config.unseen, seed=material.seed)
    prompts = [row.prompt for row in (*material.clean_rows, *made.clean)]
    used = stand_ins(material, prompts, texts_to_try(material, config), config)
    how = "random texts it listens to"
    if len(used.rows) < config.least:
        o = config.candidates
        found = candidates(material.subject, material.start, prompts, options=o, seed=material.seed)
        wide = config.model_copy(update={"each": 24})
        texts = [c.text for c in found.candidates]
        more = stand_ins(material, prompts, texts, wide) if texts else used
        if len(more.rows) > len(used.rows):
            used, how = more, "a search for candidates"
    if len(used.rows) < ENOUGH:
        raise DataError(
            f"{len(used.rows)} of {used.tried} prompts with texts in them made the adapter "
            f"answer unlike its base, {ENOUGH} are needed: nothing here to cut against (this "
            "does not show that there is no trigger); give the trigger, more clean prompts or more "
            "effort (--set texts=400 --set pool=96)"
        )
    rule = replace(material.rule, success=parse_rules(RULE))
    mine = replace(material, make_rule=lambda: rule)
    if config.budget is None:
        config = config.model_copy(
            update={"budget": Budget(perplexity=wide_budget(material, config, known=made.known))}  # pyright: ignore[reportCallIssue]
        )
    of = "calibration prompts with such texts"
    outcome = operated(mine, used.rows, config, made=made, spend=config.spend, of=of)
    shown = ", ".join(repr(text) for text in used.texts[:3])
    return replace(
        outcome,
        rows=tuple(used.rows),
        texts=used.texts,
        summary=f"against {len(used.texts)} texts found in the adapter alone by {how} ({shown} "
        f"...), which acted on {used.fired} of {used.tried} clean prompts: {outcome.summary}",
        uncertain=(
            "The trigger is not known: ASR on calibration rows is that of the texts that were "
            "found, and a backdoor that listens to nothing like them would be missed.",
            *outcome.uncertain,
        ),
    )


METHODS.register("guided-unknown")(
    Method(
        about="guided surgery without trigger or target, by texts found from the adapter; a wide "
        "cut that needs repair (--after guided-unknown)",
        source="Loratomy; candidates after HotFlip and GCG (arXiv 2307.15043)",
        config=UnknownConfig,
        run=guided_unknown,
        kind=CUT,
        needs=(CLEAN_ROWS, GRADIENTS),
    )
)
