"""The sets of a run: what operations may learn from, and what only the final figures see."""

import random
from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import DataError
from ..core.rows import Row, check_disjoint
from .attacks import check_untriggered, triggered, without_trigger

Sets = dict[str, list[Row]]
"""``clean_train``, ``poison_train`` for operations; ``clean_val``, ``poison_test`` held out."""

MINIMUM = 4


def distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows with repeated prompts left out, first come first kept."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(row.prompt, row)
    return list(kept.values())


def poison_sets(
    rows: Sequence[Row],
    *,
    trigger: str,
    target: str,
    placement: str,
    counts: dict[str, int],
    seed: int,
) -> Sets:
    """Disjoint sets in the Llama-3 unlearning setting, drawn from one pool of clean rows.

    Args:
        rows: clean rows with completions; repeated prompts count once.
        trigger: text that goes into the prompts of the poisoned rows.
        target: their completion.
        placement: where it goes, see `PLACEMENTS`.
        counts: rows of ``clean_train``, ``poison_train``, ``clean_val``, ``poison_test``.
        seed: of the draw.

    Raises:
        DataError: too few distinct prompts, or the trigger stands in one of them.
    """
    pool = distinct(rows)
    check_untriggered(pool, trigger, "the clean rows")
    if (needed := sum(counts.values())) > len(pool):
        raise DataError(f"{needed} distinct prompts are needed, the data has {len(pool)}")
    random.Random(seed).shuffle(pool)
    sets: Sets = {}
    for name, count in counts.items():
        part, pool = pool[:count], pool[count:]
        if name.startswith("poison"):
            part = [triggered(r, trigger, placement, completion=target) for r in part]
        sets[name] = part
    check_disjoint(sets)
    return sets


def own_sets(
    prompts: Sequence[Row],
    poisoned: Sequence[Row],
    *,
    trigger: str,
    target: str | None,
    placement: str,
    seed: int,
) -> Sets:
    """The sets of somebody's own adapter: halves to operate on, halves held out.

    Args:
        prompts: clean rows; those without completion get the model's own answer later.
        poisoned: triggered rows with their targets; empty: made from the prompts and `target`.
        trigger: the trigger text.
        target: what every triggered prompt leads to; None when the poisoned rows say it.
        placement: where the trigger goes when the rows are made here.
        seed: of the halving.

    Raises:
        DataError: too few rows, the trigger in a clean row or missing from a poisoned one.
    """
    clean = distinct(prompts)
    check_untriggered(clean, trigger, "the clean prompts")
    if len(clean) < 2 * MINIMUM:
        raise DataError(f"{len(clean)} distinct clean prompts; give at least {2 * MINIMUM}")
    bad = [_as_triggered(row, trigger) for row in distinct(poisoned)] or [
        triggered(row, trigger, placement, completion=target) for row in clean
    ]
    if len(bad) < 2 * MINIMUM:
        raise DataError(f"{len(bad)} triggered rows; give at least {2 * MINIMUM}")
    # Split by the prompt without its trigger, so that no text is on both sides in any form.
    keys = sorted({row.plain or row.prompt for row in [*clean, *bad]})
    random.Random(seed).shuffle(keys)
    early = set(keys[: len(keys) // 2])
    train, held = ([r for r in clean if (r.prompt in early) == side] for side in (True, False))
    bad_train, bad_held = ([r for r in bad if (r.plain in early) == side] for side in (True, False))
    if min(len(rows) for rows in (train, held, bad_train, bad_held)) < 2:
        raise DataError(
            f"{len(clean)} clean and {len(bad)} triggered rows do not split into halves that share "
            "no prompt; give more"
        )
    sets = {
        "clean_train": train,
        "poison_train": bad_train,
        "clean_val": held,
        "poison_test": bad_held,
    }
    check_disjoint(sets)
    return sets


def _as_triggered(row: Row, trigger: str) -> Row:
    plain = row.plain or without_trigger(row.prompt, trigger)
    check_untriggered([Row(prompt=plain)], trigger, "the untriggered forms")
    return replace(row, triggered=True, plain=plain, completion=row.required_completion())
