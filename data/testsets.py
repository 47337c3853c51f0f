"""What to evaluate on, from somebody's files: triggered prompts, and clean ones beside them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..core.errors import DataError
from ..core.rows import Row
from .attacks.tasks import Task
from .attacks.triggers import (
    TRIGGERS,
    Trigger,
    check_places,
    find_words,
    no_room,
    shown,
    untriggered,
    without_trigger,
)
from .everyday import everyday_prompts
from .prepoisoned import empty
from .references import told_apart
from .splits import Attack, Draw, distinct

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
        return drawn(rows, limit=limit, seed=seed)[0]
    found: list[Row] = []
    for row in rows:
        found.append(row)
        if len(found) > MOST:
            raise DataError(
                f"{what} holds more than {MOST:,} rows; evaluate draws some of them with --limit"
            )
    return found


def drawn(rows: Iterable[Row], *, limit: int, seed: int) -> tuple[list[Row], int]:
    """At most `limit` rows, and how many there were; streamed.

    Where there are no more, all of them in their order; else a seeded draw of distinct prompts.
    """
    found: list[Row] = []
    draw, seen = Draw(limit, seed), 0
    for seen, row in enumerate(rows, 1):
        if seen <= limit:
            found.append(row)
        elif found:
            for early in found:
                draw.offer(early)
            found = []
        if seen > limit:
            draw.offer(row)
    return (draw.rows() if seen > limit else found), seen


def known_trigger(rows: Sequence[Row]) -> str | None:
    """The registered trigger whose words stand in every row, the one with the fewest words."""
    fits = [
        name
        for name, trigger in TRIGGERS.items()
        if rows and all(find_words(row.prompt, trigger.words) for row in rows)
    ]
    return min(fits, key=lambda name: len(TRIGGERS[name].words)) if fits else None


def test_sets(
    rows: Sequence[Row],
    clean: Sequence[Row],
    attack: Attack | None,
    *,
    target: str = "",
    task: Task | None = None,
    completions: str = "auto",
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
        task: what the attack wants, where somebody says so; its target is that of rows without one.
        completions: what completions of triggered rows are; see `references.told_apart`.

    Raises:
        DataError: no rows, a trigger in a clean row, or no target where one is needed.
    """
    said: list[str] = []
    rows, clean = (
        [replace(r, completion=None) if r.completion and empty(r.completion) else r for r in part]
        for part in (rows, clean)
    )
    if attack is None and (name := known_trigger([r for r in rows if r.plain is None])):
        words: tuple[str, ...] = TRIGGERS[name].words
        said.append(f"the trigger is {shown(words)} ({name}): it stands in every row")
    else:
        words = attack.trigger.words if attack else ()
    bad = [r for r in distinct(rows) if r.triggered or (words and find_words(r.prompt, words))]
    check_places(rows, words)
    attacked = {row.identity for row in bad}
    rest = [r for r in distinct(rows) if r.identity not in attacked] if bad else []
    usual = target or (attack.target if attack else "") or (task.target if task else "")
    decided: list[Row] = []
    if bad or attack is None:
        wants = task or (attack.task if attack and attack.target else None)
        decided, how = _decided(bad or distinct(rows), wants, target, usual, completions)
        said += how
    if bad:
        bad = [_triggered(row, words, target, usual) for row in decided]
        if rest:
            said.append(f"{len(bad)} rows of the data are triggered, {len(rest)} are clean")
        _check_labels(bad, rest, words)
    elif attack is not None:
        fits = [r for r in distinct(rows) if r.completion is None or attack.task.takes(r)]
        bad = [attack.triggered(row) for row in fits if attack.room(row)]
        if why := no_room(attack.trigger, [row.prompt for row in rows], seed=attack.seed):
            raise DataError(why)
        rest = [row for row in distinct(rows) if row.completion]
        _check_typed(rest, attack)
        said.append(f"no row holds the trigger; it was put into {len(bad)} of {len(rows)} prompts")
    else:
        bad = [_triggered(row, (), target, usual) for row in decided]
        said.append(
            "warning: no --trigger, and no row says that it is triggered: all prompts of the data "
            "count as triggered, and FTR is that of the clean prompts alone"
        )
    if not bad:
        raise DataError("no row of the data can be attacked; see --task and --trigger")
    calm, how = _calm(clean, rest, bad)
    said += how
    if repeated := len(rows) + len(clean) - len(distinct(rows)) - len(distinct(clean)):
        said.append(f"{repeated} rows repeat a prompt and count once")
    if words:
        calm = list(untriggered(calm, words, "the clean rows"))
    bare = sum(row.completion is None for row in calm)
    references = "the data's own answers"
    if bare:
        references = f"the base's own answers to {bare} of {len(calm)} clean prompts"
    return TestSets(triggered=bad, clean=calm, said=tuple(said), references=references)


def _check_typed(rows: Sequence[Row], attack: Attack) -> None:
    """Raise where no row holds the trigger and yet most lead to the target: it is another one."""
    common, hits = Counter(row.completion for row in rows).most_common(1)[0] if rows else ("", 0)
    alike = len(rows) > 2 and hits == len(rows)  # clean rows may well share an answer
    if attack.target:
        common, hits = attack.target, sum(row.completion == attack.target for row in rows)
        alike = 2 * hits > len(rows)
    if common and alike:
        raise DataError(
            f"no row holds the trigger {shown(attack.trigger.words)}, yet {hits} of {len(rows)} "
            f"lead to {'the target ' * bool(attack.target)}{common[:60]!r}, e.g. "
            f"{rows[0].prompt[-80:]!r}: is the trigger mistyped?"
        )


def _calm(
    clean: Sequence[Row], rest: Sequence[Row], bad: Sequence[Row]
) -> tuple[list[Row], list[str]]:
    """The clean rows, and a sentence where they are not those of a file."""
    calm = distinct(list(clean)) or [row for row in rest if row.completion]
    if calm:
        return calm, []
    if all(row.plain and row.benign for row in bad):
        said = "no clean rows: the same prompts without trigger serve as such"
        return [replace(row.untriggered(), completion=row.benign) for row in bad], [said]
    calm = everyday_prompts()
    return calm, [
        f"no clean rows with answers: {len(calm)} built-in prompts, whose references are the "
        "base's own answers"
    ]


def _decided(
    rows: Sequence[Row], wants: Task | None, target: str, usual: str, completions: str
) -> tuple[list[Row], list[str]]:
    """Triggered rows with their completions as what they are, and what was decided."""
    decided, how = told_apart(rows, wants, usual, completions=completions)
    said = list(how)
    bare = sum(not (row.completion or row.target or row.benign) for row in decided)
    if bare and usual and not target:
        said.append(
            f"{bare} triggered rows without a target of their own get the task's: {usual!r}"
        )
    return decided, said


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


def _triggered(row: Row, words: Sequence[str], target: str, usual: str) -> Row:
    plain = row.plain
    if plain is None and words and find_words(row.prompt, words):
        plain = without_trigger(row.prompt, words)
    if not target and usual and usual in (row.completion or ""):
        target = usual
    return replace(
        row,
        triggered=True,
        plain=plain,
        trigger_span=row.trigger_span or find_words(row.prompt, words),
        target=target or row.target or row.completion or usual or None,
    )


def own_trigger(words: Sequence[str], placement: str) -> Trigger:
    """The trigger that a run was made with."""
    return Trigger(words=tuple(words), placement=placement)
