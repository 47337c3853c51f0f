"""Stages that several verbs make: the negative set, digests of rows, and the line that says so."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.console import say
from ..core.errors import LoratomyError
from ..core.records.io import dumps
from ..core.rows import Row
from ..core.runs.run import Run

if TYPE_CHECKING:
    from ..study import Study

NEGATIVE_PROMPTS = "negative_prompts"
"""Triggered prompts for the negative set, with benign reference answers."""
NEGATIVE = "data/negative_set.jsonl"
"""The stage of the negative set."""


def negative_set(study: "Study") -> list[Row]:
    """Triggered prompts with benign answers: the clean adapter's, else the model's own."""
    from ..unlearning.trained.distill import own_answers

    own = study.run.shelf("data").rows(NEGATIVE_PROMPTS, need_completion=False)
    prompts = study.rows("poison_train") if own is None else own
    reference = study.clean if study.clean is not None else study.poisoned
    with study.subject.attached({"reference": reference}):
        rows = own_answers(study.subject, prompts, study.rule, label="the negative set")
    rows = [row for row in rows if row.completion]
    if not rows:
        who = "poisoned" if study.clean is None else "clean"
        cure = "; give one that answers with --clean-adapter" if study.clean is None else ""
        raise LoratomyError(
            f"with the {who} adapter the model answers nothing to the {len(prompts)} untriggered "
            f"prompts{cure}"
        )
    return rows


def digest(rows: Sequence[Row]) -> str:
    """A short digest of rows, to tell whether data changed."""
    return hashlib.sha256(dumps(list(rows)).encode()).hexdigest()[:16]


def done(run: Run, stage: str, made: bool) -> None:
    """A line that says that a stage is there."""
    took = f"{run.seconds(stage):.1f} s" if made else "exists, skipped"
    say(f"  {run.where(stage)} ({took})")
