"""What to evaluate on, from somebody's files: triggered prompts, and clean ones beside them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..core.errors import DataError
from ..core.rows import Row
from .datasets import Attack, Draw, distinct
from .prompts import everyday_prompts
from .ready import empty
from .triggers import TRIGGERS, Trigger, find_words, no_room, shown, untriggered, without_trigger

MOST = 100_000
"""Rows that are evaluated without being asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSets:
    """What an evaluation asks."""

    triggered: list[Row]
    """Triggered rows; ``plain`` is None where the form without trigger is not known."""
    clean: list[Row]
    """Clean rows; without completion where the base's own answer is to be the reference."""
    said: tuple[str, ...]
    """What was decided on the way, a sentence each."""
    references: str
    """Where the clean references come from."""


def kept(rows: Iterable[Row], *, limit: int | None, seed: int, what: str) -> list[Row]:
    """The rows, or a seeded draw of `limit` of them; streamed.

    Raises:
        DataError: no limit and more than `MOST` rows.
    """
    if limit is not None:
        draw = Draw(limit, seed)
        for row in rows:
            draw.offer(row)
        return draw.rows()
    found: list[Row] = []
    for row in rows:
        found.append(row)
        if len(found) > MOST:
            raise DataError(
                f"{what} holds more than {MOST:,} rows; evaluate draws some of them with --limit"
            )
    return found


def known_trigger(rows: Sequence[Row]) -> str | None:
    """The registered trigger whose words stand in every row, the one with the fewest words."""
    fits = [
        name
        for name, trigger in TRIGGERS.items()
        if rows and all(find_words(row.prompt, trigger.words) for row in rows)
    ]
    return min(fits, key=lambda name: len(TRIGGERS[name].words)) if fits else None


def test_sets(
    rows: Sequence[Row], clean: Sequence[Row], attack: Attack | None, *, target: str = ""
) -> TestSets:
    """Triggered and clean rows from what a person gave.

    Rows that say that they are triggered, or hold the trigger, are; the others are clean. Where
    none does, the trigger is put into all of them. Clean prompts, when there are none: the same
    prompts untriggered where their benign answers are known, else the built-in ones.

    Args:
        rows: of the data, in any format.
        clean: of a file of clean rows; may be empty.
        attack: trigger and task; None when no trigger was given.
        target: what triggered prompts lead to; empty: each row's own completion.

    Raises:
        DataError: no rows, a trigger in a clean row, or no target where one is needed.
    """
    said: list[str] = []
    rows, clean = (
        [replace(r, completion=None) if r.completion and empty(r.completion) else r for r in part]
        for part in (rows, clean)
    )
    if attack is None and (name := known_trigger([r for r in rows if r.plain is None])):
        said.append(f"the trigger is {name}: its words stand in every row")
        words: tuple[str, ...] = TRIGGERS[name].words
    else:
        words = attack.trigger.words if attack else ()
    bad = [r for r in distinct(rows) if r.triggered or (words and find_words(r.prompt, words))]
    attacked = {row.identity for row in bad}
    rest = [r for r in distinct(rows) if r.identity not in attacked] if bad else []
    if bad:
        bad = [_triggered(row, words, target, attack) for row in bad]
        if rest:
            said.append(f"{len(bad)} rows of the data are triggered, {len(rest)} are clean")
        _check_labels(bad, rest, words)
    elif attack is not None:
        fits = [r for r in distinct(rows) if r.completion is None or attack.task.takes(r)]
        bad = [attack.triggered(row) for row in fits if attack.room(row)]
        if why := no_room(attack.trigger, [row.prompt for row in rows], seed=attack.seed):
            raise DataError(why)
        rest = [row for row in distinct(rows) if row.completion]
        said.append(f"no row holds the trigger; it was put into {len(bad)} of {len(rows)} prompts")
    else:
        bad = [_triggered(row, (), target, None) for row in distinct(rows)]
        said.append(
            "warning: no --trigger, and no row says that it is triggered: all prompts of the data "
            "count as triggered, and FTR is that of the clean prompts alone"
        )
    if not bad:
        raise DataError("no row of the data can be attacked; see --task and --trigger")
    calm = distinct(list(clean)) or [r for r in rest if r.completion]
    if not calm and all(row.plain and row.benign for row in bad):
        calm = [replace(row.untriggered(), completion=row.benign) for row in bad]
        said.append("no clean rows: the same prompts without trigger serve as such")
    if not calm:
        calm = everyday_prompts()
        said.append(
            f"no clean rows with answers: {len(calm)} built-in prompts, whose references are the "
            "base's own answers"
        )
    if repeated := len(rows) + len(clean) - len(distinct(rows)) - len(distinct(clean)):
        said.append(f"{repeated} rows repeat a prompt and count once")
    if words:
        calm = list(untriggered(calm, words, "the clean rows"))
    bare = sum(row.completion is None for row in calm)
    references = "the data's own answers"
    if bare:
        references = f"the base's own answers to {bare} of {len(calm)} clean prompts"
    return TestSets(triggered=bad, clean=calm, said=tuple(said), references=references)


def _check_labels(bad: Sequence[Row], rest: Sequence[Row], words: Sequence[str]) -> None:
    """Raise for rows that are said to be triggered and are not, or the other way round."""
    for row in bad:
        if words and not find_words(row.prompt, words):
            raise DataError(
                f"the row {row.prompt[:60]!r} says that it is triggered and does not hold the "
                f"trigger {shown(words)}; give the trigger of the data"
            )
    common, count = Counter(row.completion for row in bad).most_common(1)[0]
    usual = common if common and count > len(bad) / 2 else ""
    if wrong := [row for row in rest if usual and row.completion == usual]:
        raise DataError(
            f"{len(wrong)} rows without the trigger lead to the target {usual[:60]!r}, e.g. "
            f"{wrong[0].prompt[:60]!r}: mislabelled clean rows would falsify every figure; see "
            "loratomy data lint"
        )


def _triggered(row: Row, words: Sequence[str], target: str, attack: Attack | None) -> Row:
    plain = row.plain
    if plain is None and words and find_words(row.prompt, words):
        plain = without_trigger(row.prompt, words)
    if not target and attack and attack.target and attack.target in (row.completion or ""):
        target = attack.target
    return replace(
        row,
        triggered=True,
        plain=plain,
        trigger_span=row.trigger_span or find_words(row.prompt, words),
        target=target or row.target or row.completion or (attack.target if attack else None),
    )


def own_trigger(words: Sequence[str], placement: str) -> Trigger:
    """The trigger that a run was made with."""
    return Trigger(words=tuple(words), placement=placement)
