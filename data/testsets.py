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
from .references import classify_completions
from .splits import Attack, Sample, distinct

MOST = 100_000
"""Most rows that are evaluated without a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSets:
    """The prompts of an evaluation."""

    triggered: list[Row]
    """Triggered rows; ``plain`` is None where the form without trigger is not known."""
    clean: list[Row]
    """Clean rows; without completion where the base's own answer is to be the reference."""
    notes: tuple[str, ...]
    """How the rows were read, a sentence each."""
    references: str
    """Where the clean references come from."""


def kept(rows: Iterable[Row], *, limit: int | None, seed: int, what: str) -> list[Row]:
    """The rows, or a seeded sample of `limit` of them; streamed.

    Raises:
        DataError: no limit and more than `MOST` rows.
    """
    if limit is not None:
        return sampled(rows, limit=limit, seed=seed)[0]
    found: list[Row] = []
    for row in rows:
        found.append(row)
        if len(found) > MOST:
            raise DataError(
                f"{what} holds more than {MOST:,} rows; evaluate samples some of them with --limit"
            )
    return found


def sampled(rows: Iterable[Row], *, limit: int, seed: int) -> tuple[list[Row], int]:
    """At most `limit` rows, and how many there were; streamed.

    All of them in their order where there are no more; else a seeded sample of distinct prompts.
    """
    found: list[Row] = []
    sample, seen = Sample(limit, seed), 0
    for seen, row in enumerate(rows, 1):
        if seen <= limit:
            found.append(row)
        elif found:
            for early in found:
                sample.offer(early)
            found = []
        if seen > limit:
            sample.offer(row)
    return (sample.rows() if seen > limit else found), seen


def known_trigger(rows: Sequence[Row]) -> str | None:
    """The registered trigger whose words are in every row, the one with the fewest words."""
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

    Rows that are marked as triggered, or hold the trigger, are triggered; the others are clean.
    Where there is none, the trigger is put into all of them. Without clean rows, the same prompts
    untriggered serve where their benign answers are known, else the built-in prompts.

    Args:
        rows: of the data, in any format.
        clean: of a file of clean rows; may be empty.
        attack: trigger and task; None when no trigger was given.
        target: what triggered prompts lead to; empty: each row's own completion.
        task: what the attack wants, where it is known; its target is that of rows without one.
        completions: what completions of triggered rows are; see `classify_completions`.

    Raises:
        DataError: no rows, a trigger in a clean row, or no target where one is needed.
    """
    notes: list[str] = []
    rows, clean = (
        [replace(r, completion=None) if r.completion and empty(r.completion) else r for r in part]
        for part in (rows, clean)
    )
    if attack is None and (name := known_trigger([r for r in rows if r.plain is None])):
        words: tuple[str, ...] = TRIGGERS[name].words
        notes.append(f"the trigger is {shown(words)} ({name}): every row holds it")
    else:
        words = attack.trigger.words if attack else ()
    triggered = [
        r for r in distinct(rows) if r.triggered or (words and find_words(r.prompt, words))
    ]
    check_places(rows, words)
    attacked = {row.identity for row in triggered}
    rest = [r for r in distinct(rows) if r.identity not in attacked] if triggered else []
    usual = target or (attack.target if attack else "") or (task.target if task else "")
    decided: list[Row] = []
    if triggered or attack is None:
        wants = task or (attack.task if attack and attack.target else None)
        decided, how = _decided(triggered or distinct(rows), wants, target, usual, completions)
        notes += how
    if triggered:
        triggered = [_triggered(row, words, target, usual) for row in decided]
        if rest:
            notes.append(f"{len(triggered)} rows of the data are triggered, {len(rest)} are clean")
        _check_labels(triggered, rest, words)
    elif attack is not None:
        fits = [r for r in distinct(rows) if r.completion is None or attack.task.takes(r)]
        triggered = [attack.triggered(row) for row in fits if attack.room(row)]
        if why := no_room(attack.trigger, [row.prompt for row in rows], seed=attack.seed):
            raise DataError(why)
        rest = [row for row in distinct(rows) if row.completion]
        _check_typed(rest, attack)
        notes.append(
            f"no row holds the trigger; it was put into {len(triggered)} of {len(rows)} prompts"
        )
    else:
        triggered = [_triggered(row, (), target, usual) for row in decided]
        notes.append(
            "warning: no --trigger, and no row is marked as triggered: all prompts of the data "
            "count as triggered, and FTR is that of the clean prompts alone"
        )
    if not triggered:
        raise DataError("no row of the data can be attacked; see --task and --trigger")
    clean_rows, how = _clean_rows(clean, rest, triggered)
    notes += how
    if repeated := len(rows) + len(clean) - len(distinct(rows)) - len(distinct(clean)):
        notes.append(f"{repeated} rows repeat a prompt and count once")
    if words:
        clean_rows = list(untriggered(clean_rows, words, "the clean rows"))
    bare = sum(row.completion is None for row in clean_rows)
    references = "the data's own answers"
    if bare:
        references = f"the base's own answers to {bare} of {len(clean_rows)} clean prompts"
    return TestSets(
        triggered=triggered, clean=clean_rows, notes=tuple(notes), references=references
    )


def _check_typed(rows: Sequence[Row], attack: Attack) -> None:
    """Raise where no row holds the trigger and yet most lead to the target: it is mistyped."""
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


def _clean_rows(
    clean: Sequence[Row], rest: Sequence[Row], triggered: Sequence[Row]
) -> tuple[list[Row], list[str]]:
    """The clean rows, and a sentence where they are not those of a file."""
    found = distinct(list(clean)) or [row for row in rest if row.completion]
    if found:
        return found, []
    if all(row.plain and row.benign for row in triggered):
        note = "no clean rows: the same prompts without trigger serve as such"
        return [replace(row.untriggered(), completion=row.benign) for row in triggered], [note]
    found = everyday_prompts()
    return found, [
        f"no clean rows with answers: {len(found)} built-in prompts, whose references are the "
        "base's own answers"
    ]


def _decided(
    rows: Sequence[Row], wants: Task | None, target: str, usual: str, completions: str
) -> tuple[list[Row], list[str]]:
    """Triggered rows with their completions classified, and a sentence for each decision."""
    decided, how = classify_completions(rows, wants, usual, completions=completions)
    notes = list(how)
    bare = sum(not (row.completion or row.target or row.benign) for row in decided)
    if bare and usual and not target:
        notes.append(
            f"{bare} triggered rows without a target of their own get the task's: {usual!r}"
        )
    return decided, notes


def _check_labels(triggered: Sequence[Row], rest: Sequence[Row], words: Sequence[str]) -> None:
    """Raise for rows that are marked as triggered and are not, or the other way round."""
    for row in triggered:
        if words and not find_words(row.prompt, words):
            raise DataError(
                f"the row {row.prompt[:60]!r} is marked as triggered and does not hold the "
                f"trigger {shown(words)}; give the trigger of the data"
            )
    common, count = Counter(row.completion for row in triggered).most_common(1)[0]
    usual = common if common and count > len(triggered) / 2 else ""
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
