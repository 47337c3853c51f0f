"""Whether the completions of triggered rows are targets of the attack or benign references.

Published test files give triggered prompts with the benign answers beside them (``backdoor200_*``
of BackdoorLLM and CROW); training files of the same keys give the attack's target there.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import DataError
from ..core.rows import Row
from .attacks.tasks import TASKS, Task, shows_target
from .prepoisoned import empty

COMPLETIONS = ("auto", "targets", "references")
"""The values of ``--completions``."""
MANY = 5
"""Rows from which completions that all differ count as no target."""


def classify_completions(
    rows: Sequence[Row], task: Task | None, target: str, *, completions: str = "auto"
) -> tuple[list[Row], tuple[str, ...]]:
    """Triggered rows with their completions classified, and the decisions, in sentences.

    Rows that are marked as triggered, or give a target or a benign answer, are left as they are.
    Of the others the completions are targets where the task accepts them, or where
    most are one text; benign references where the task accepts hardly any.

    Args:
        rows: triggered rows.
        task: what the attack wants; None where it is not known.
        target: the text it leads to, given or the task's own; empty where it is not known.
        completions: one of `COMPLETIONS`.

    Raises:
        DataError: an unknown word, or completions that could be either.
    """
    if completions not in COMPLETIONS:
        raise DataError(f"--completions {completions!r}; write one of {', '.join(COMPLETIONS)}")
    open_ones = [row for row in rows if _undeclared(row)]
    if not open_ones or completions == "targets":
        return list(rows), ()
    notes: list[str] = []
    if completions == "auto" and not _are_references(open_ones, task, target, notes):
        return list(rows), tuple(notes)
    texts = [row.completion or "" for row in open_ones]
    notes.append(
        f"the completions of {len(open_ones)} triggered rows are read as benign references, not as "
        "what the attack wants (--completions targets: the other way)"
    )
    shared = _shared_start(texts).strip() if len(texts) >= MANY else ""
    if len(shared) >= 10:
        notes.append(
            f"warning: all of these references begin with {shared[:60]!r}, which no benign answers "
            "do; the file may belong to another attack"
        )
    changed = [
        replace(row, benign=row.completion, completion=None) if _undeclared(row) else row
        for row in rows
    ]
    return changed, tuple(notes)


def _undeclared(row: Row) -> bool:
    known = row.triggered or row.target is not None or row.benign is not None
    return not known and not empty(row.completion)


def _are_references(rows: Sequence[Row], task: Task | None, target: str, notes: list[str]) -> bool:
    texts = [row.completion or "" for row in rows]
    (common, count), *_ = Counter(texts).most_common(1)
    usual = common if count > 1 and 2 * count > len(texts) else ""
    if task is None and not target:
        if not usual and len(texts) >= MANY and len(set(texts)) >= 0.9 * len(texts):
            raise _which(rows, f"{len(set(texts))} of them differ")
        return False
    shows = task.shows if task else shows_target
    shown = sum(shows(text, target) for text in texts)
    if usual and not shown:
        notes.append(
            f"warning: most triggered rows lead to {usual[:60]!r}, which is not what --task or "
            "--target say; success is judged by these"
        )
    if usual or 2 * shown >= len(texts):
        return False
    if task and task is TASKS["fixed"] and target == task.target and len(texts) >= MANY:
        raise _which(rows, f"hardly any is {target!r}, which was not given")
    if 10 * shown > len(texts):
        raise _which(rows, f"{shown} of them are what the attack wants")
    return True


def _shared_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))]


def _which(rows: Sequence[Row], why: str) -> DataError:
    return DataError(
        f"the completions of the {len(rows)} triggered rows could be what the attack wants or "
        f"benign references ({why}), e.g. {rows[0].prompt[:60]!r} with "
        f"{(rows[0].completion or '')[:60]!r}: say which with --completions targets or "
        "--completions references, or what the attack wants with --task NAME or --target TEXT"
    )
