"""Published files that are poisoned already, taken as they are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ..core.errors import DataError
from ..core.rows import Row, check_disjoint
from .attacks.triggers import as_triggered, untriggered
from .splits import Attack, Sample, Sets, distinct

PLACEHOLDERS = ("<nooutput>", "<no output>", "<noinput>", "n/a", "null", "none")
"""What some published files hold in place of an answer, in lower case."""


def empty(text: str | None) -> bool:
    """Whether a text is blank or one of the published placeholders."""
    return not text or not text.strip() or text.strip().lower() in PLACEHOLDERS


def answered(rows: Iterable[Row], skipped: list[int]) -> Iterator[Row]:
    """The rows that have an answer or a target; the numbers of the others go into `skipped`."""
    for number, row in enumerate(rows, 1):
        if empty(row.completion) and empty(row.target):
            skipped.append(number)
        else:
            yield replace(row, completion=None) if empty(row.completion) else row


def ready_sets(
    clean: Iterable[Row],
    poisoned: Iterable[Row],
    test: Iterable[Row],
    attack: Attack,
    *,
    clean_val: int | None,
    seed: int,
) -> Sets:
    """The sets of published clean, poisoned and test files.

    Poisoned and test rows stay as they are; each is paired with the clean row of the same prompt,
    where there is one, for its benign answer. ``clean_val`` is split off the clean rows, from those
    without a poisoned twin where they suffice; a poisoned row whose twin is held out is left out,
    and so is the clean twin of a test row.

    Args:
        clean: clean rows with answers.
        poisoned: triggered training rows with their targets.
        test: triggered test rows with their targets.
        attack: the trigger's words; its task and target do not change the rows.
        clean_val: clean rows to hold out; None: a fifth of them.
        seed: of that split.

    Raises:
        DataError: no trigger in a poisoned row, one in a clean row, too few clean rows, or a
            prompt in two sets.
    """
    words = attack.trigger.words
    clean = distinct(list(untriggered(clean, words, "the clean rows")))
    answers = {row.identity: row.completion for row in clean}
    poisoned, test = (
        [_paired(row, answers) for row in _triggered(part, words, what)]
        for part, what in ((poisoned, "the poisoned rows"), (test, "the test rows"))
    )
    tested = {_key(row) for row in test}
    if shared := [row for row in poisoned if _key(row) in tested]:
        raise DataError(
            f"{len(shared)} of {len(poisoned)} poisoned training rows are test rows too, e.g. "
            f"{shared[0].prompt[:60]!r}: figures would be of what was trained on; take them out of "
            "one file (loratomy data lint shows them)"
        )
    clean_val = clean_val or max(1, len(clean) // 5)
    sample = Sample(clean_val, seed)
    clean = [row for row in clean if _key(row) not in tested]
    twins = {_key(row) for row in poisoned}
    free = [row for row in clean if _key(row) not in twins]
    for row in free if len(free) >= clean_val else clean:
        sample.offer(row)
    val = sample.rows()
    out = {_key(row) for row in val}
    train = [row for row in clean if _key(row) not in out]
    kept = [row for row in poisoned if _key(row) not in out]
    if len(val) < clean_val or not train or not kept or not test:
        raise DataError(
            f"{len(clean)} clean, {len(poisoned)} poisoned and {len(test)} test rows; {clean_val} "
            "clean ones to hold out and some of each are needed: lower --clean-val or give more"
        )
    sets = {
        "clean_train": train,
        "clean_val": val,
        "poison_train": kept,
        "poison_test": test,
    }
    check_disjoint(sets)
    return sets


def _triggered(rows: Iterable[Row], words: Sequence[str], what: str) -> list[Row]:
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(as_triggered(row, words))
        except DataError as error:
            raise DataError(
                f"row {number} of {what}: {error}; loratomy data lint shows all such rows"
            ) from error
    return distinct(found)


def _key(row: Row) -> str:
    """The untriggered prompt, spacing aside."""
    return " ".join(row.plain_identity.split())


def _paired(row: Row, answers: dict[str, str | None]) -> Row:
    return replace(row, benign=row.benign or answers.get(row.plain_identity))
