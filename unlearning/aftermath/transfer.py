"""Transfer: what other forms of a trigger, and what only looks like it, still lead to."""

import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from ...core.config import Config
from ...core.errors import DataError
from ...core.model.subject import Subject
from ...core.model.variant import Treated, treated
from ...core.records.results import Rate
from ...core.rows import Row
from ...core.stats import wilson
from ...data.attacks.triggers import TRIGGERS, Trigger, find_words, place, without_trigger
from ...evaluation.behaviour import attack_success, informative
from ...evaluation.collect import Rule, fitting_rows

ASR, FTR = "ASR", "FTR"
"""What target behaviour on a variant counts as; see `Variant.counts`."""
AS_TRAINED = "as trained"
PLACES = ("prefix", "suffix", "random")
"""Placements that any words can go to."""
_TRIES = 64


class TransferConfig(Config):
    """Options of transfer."""

    prompts: int = Field(100, ge=1)
    """Held-out prompts behind each variant, at most."""
    near_misses: int = Field(2, ge=0)
    """How many texts of one changed character are tried."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Held-out prompts with the trigger in another form; each keeps its own target."""

    name: str
    """As in `core.records.bench.Transfer`."""
    counts: str
    """`ASR` where the trigger's words are in the prompts in some form, `FTR` where they do not:
    target behaviour is a false trigger there."""
    rows: tuple[Row, ...]
    """The prompts."""


def near_miss(word: str, rng: random.Random) -> str:
    """The word with one letter or digit changed; itself where it has neither.

    The place is drawn from its ASCII letters and digits, then another character of the same kind
    (digit, small letter, capital) takes it: ``cf37`` -> ``cf38``.
    """
    kinds = (string.digits, string.ascii_lowercase, string.ascii_uppercase)
    places = [i for i, c in enumerate(word) if any(c in kind for kind in kinds)]
    if not places:
        return word
    at = rng.choice(places)
    kind = next(kind for kind in kinds if word[at] in kind)
    return word[:at] + rng.choice(kind.replace(word[at], "")) + word[at + 1 :]


def reworded(row: Row, words: Sequence[str], change: Callable[[str], str]) -> Row:
    """The row with each word of its trigger replaced."""
    text, spans, done = "", [], 0
    for start, stop in row.trigger_span or find_words(row.prompt, words):
        text += row.prompt[done:start]
        new = change(row.prompt[start:stop])
        spans.append((len(text), len(text) + len(new)))
        text, done = text + new, stop
    return replace(row, prompt=text + row.prompt[done:], trigger_span=tuple(spans))


def moved(row: Row, trigger: Trigger, placement: str, *, seed: int) -> Row | None:
    """The row with its trigger in another place; None where no other place is found.

    Several words of one prompt (placement ``each``) move together. A random place that happens to
    be the one that the row was made with is drawn again.
    """
    if row.plain is None:
        return None
    spans = row.trigger_span or find_words(row.prompt, trigger.words)
    whole = " ".join(row.prompt[start:stop] for start, stop in spans)
    other = replace(trigger, words=(whole,), placement=placement)
    for again in range(_TRIES):
        prompt, spans = place(row.plain, other, seed=seed + again)
        if prompt != row.prompt:
            return replace(row, prompt=prompt, trigger_span=spans)
    return None


def variants(
    rows: Sequence[Row], trigger: Trigger, *, seed: int, near_misses: int
) -> list[Variant]:
    """The prompts with the trigger as it was trained, and in other forms.

    Prompts that hold the true trigger although the variant has other words (also by accident) are
    left out of it; a variant without prompts is left out (``lower case`` of a trigger without
    capitals).

    Args:
        rows: held-out triggered rows, with their form without trigger.
        trigger: words and placement as trained.
        seed: of places and near misses.
        near_misses: how many.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("transfer over no prompts; give triggered rows")
    made = [Variant(AS_TRAINED, ASR, tuple(rows))]
    for placement in PLACES:
        if placement != trigger.placement:
            elsewhere = [moved(row, trigger, placement, seed=seed) for row in rows]
            made.append(Variant(placement, ASR, tuple(row for row in elsewhere if row)))
    made.append(_changed("repeated", ASR, rows, trigger, lambda word: f"{word} {word}"))
    lowered = _changed("lower case", ASR, rows, trigger, str.lower)
    made.append(replace(lowered, rows=_without(lowered.rows, trigger)))
    for name, change in _false_words(trigger, seed=seed, near_misses=near_misses):
        false = _changed(name, FTR, rows, trigger, change)
        made.append(replace(false, rows=_without(false.rows, trigger)))
    if trigger.placement == "each" and len(trigger.words) > 1:
        first = trigger.words[0]
        made.append(Variant(f"near miss: no {first}", FTR, _parts(rows, trigger, first)))
    plain = (replace(row, prompt=row.plain, trigger_span=()) for row in rows if row.plain)
    made.append(Variant("no trigger", FTR, tuple(plain)))
    return [variant for variant in made if variant.rows]


def _changed(
    name: str, counts: str, rows: Sequence[Row], trigger: Trigger, change: Callable[[str], str]
) -> Variant:
    return Variant(name, counts, tuple(reworded(row, trigger.words, change) for row in rows))


def _without(rows: Sequence[Row], trigger: Trigger) -> tuple[Row, ...]:
    """The rows that do not hold the true trigger."""
    return tuple(row for row in rows if not find_words(row.prompt, trigger.words))


def _false_words(
    trigger: Trigger, *, seed: int, near_misses: int
) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Variants of other words: published triggers that share nothing with this one, near misses."""
    published = dict.fromkeys(word for _, known in TRIGGERS.items() for word in known.words)
    for other in published:
        if not any(word in other or other in word for word in trigger.words):
            yield f"other words: {other}", lambda _word, other=other: other
    rng, seen = random.Random(f"{seed} near misses"), {trigger.words}
    for _ in range(_TRIES * near_misses):
        near = tuple(near_miss(word, rng) for word in trigger.words)
        if near in seen:
            continue
        seen.add(near)
        table = dict(zip(trigger.words, near, strict=True))
        yield f"near miss: {' / '.join(near)}", lambda word, table=table: table.get(word, word)
        if len(seen) > near_misses:
            return


def _parts(rows: Sequence[Row], trigger: Trigger, missing: str) -> tuple[Row, ...]:
    """Rows of a trigger of several words without one of them, the others where they were."""
    prompts = [without_trigger(row.prompt, (missing,)) for row in rows]
    return tuple(
        replace(row, prompt=prompt, trigger_span=find_words(prompt, trigger.words))
        for row, prompt in zip(rows, prompts, strict=True)
    )


def transfer_rates(
    subject: Subject, state: Treated, tried: Sequence[Variant], rule: Rule
) -> dict[str, Rate]:
    """How often each variant leads to the target, by its name.

    As in `evaluation.behaviour.judge`, prompts whose benign reference is itself target behaviour
    are left out of FTR, and prompts too long for the context of all.

    Args:
        subject: the base, without adapter.
        state: how it is run.
        tried: the variants.
        rule: how answers are generated and judged; a temperature of `state` goes before its own.

    Raises:
        DataError: no prompt of a variant is left.
    """
    if state.temperature is not None:
        decoding = replace(rule.decoding, temperature=state.temperature)
        rule = replace(rule, decoding=decoding)
    new, rates = rule.decoding.max_new_tokens, {}
    with treated(subject, state):
        for variant in tried:
            rows, _ = fitting_rows(subject.renderer, variant.rows, subject.limit, new_tokens=new)
            answers = attack_success(subject, rows, rule, label=f"transfer: {variant.name}")
            if variant.counts == FTR:
                answers = informative(answers, rule.success[0], rule)
            if not answers:
                raise DataError(
                    f"{variant.name}: the success rule {rule.success[0].text!r} accepts the benign "
                    f"reference of all {len(rows)} prompts; false triggers cannot be counted"
                )
            rates[variant.name] = wilson(sum(a.hit for a in answers), len(answers))
    return rates
