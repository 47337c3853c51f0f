"""What is wrong with backdoor data: triggers, targets, pairs, repeats, characters, lengths.

Files are read twice and never held: the first pass finds out what the rows of a file are for, the
second one checks them row by row and keeps eight-byte digests for what shows between rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...core.progress import report, tracked
from ...core.rendering.prompts import Renderer
from ...core.rows import Row
from ..attacks.tasks import TASKS
from ..prepoisoned import empty
from ..refusals import is_refusal
from .checks import (
    RenderingCheck,
    Triggers,
    answer_defects,
    character_defects,
    template_defects,
)
from .duplicates import Digests, repeated, shared, unpaired
from .findings import Defect, Defects, cut
from .survey import LintedFile, View, registered_words, survey

__all__ = ["Defect", "LintOptions", "LintedFile", "lint"]

BATCH = 256
"""Rows that are judged together, and after which progress is reported."""


Judge = Callable[[Sequence[str], Sequence[str]], Sequence[bool]]
"""``(answers, targets) -> which of them show the target behaviour``, all ``[case]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LintOptions:
    """What is known of the attack and the subject; everything may be left open."""

    words: tuple[str, ...] = ()
    """The trigger's words; empty: guessed from the rows."""
    every: bool = False
    """Whether a triggered prompt must hold all of them."""
    task: str = ""
    """Name of the task."""
    target: str = ""
    """What triggered prompts lead to; empty: each row's own, or what most completions are."""
    rule: str
    """What counts as target behaviour, in words."""
    judge: Judge
    """Decides it."""
    needs_target: bool = True
    """Whether the rule compares with the target."""
    renderer: Renderer | None = None
    """The subject's tokenizer and template; None: nothing is rendered."""
    limit: int | None = None
    """The subject's context in tokens."""


def lint(sources: Sequence[LintedFile], options: LintOptions) -> list[Defect]:
    """The defects of files of rows, errors first, one finding for each check and file.

    Args:
        sources: the files; their names tell training from held-out and clean from poisoned.
        options: what is known of the attack and the subject.

    Raises:
        DataError: a file that cannot be read.
    """
    views = [survey(source, options.words) for source in tracked(sources, "reading")]
    guessed = tuple(dict.fromkeys(word for view in views for word in view.words))
    triggers = Triggers(options.words, options.every, guessed or registered_words())
    judge = _Judge(options, views)
    rendering = RenderingCheck(options.renderer, options.limit) if options.renderer else None
    found, digests = Defects(), []
    for view in views:
        rows = Digests(view)
        digests.append(rows)
        view.source.bad.clear()
        for item in view.source.rows():
            number, row = item.number, item.row
            for level, check, what in (
                *triggers.defects(row, view),
                *answer_defects(row, view),
                *character_defects(row, triggers.known),
                *template_defects(row),
                *(rendering.defects(row) if rendering else ()),
            ):
                found.add(level, check, view.name, number, what)
            judge.add(number, row, view, found)
            rows.add(row, number)
            if number % BATCH == 0:
                report(f"checking {view.name}", min(number, view.rows - 1), view.rows)
        judge.flush(view, found)
        report(f"checking {view.name}", view.rows, view.rows)
        unreadable(view, found)
        repeated(rows, found)
    shared(digests, found)
    unpaired(digests, found)
    return found.findings()


def unreadable(view: View, found: Defects) -> None:
    """The rows of a file that cannot be read, all of them, one finding for each kind."""
    bad = view.source.bad
    for kind, numbers in bad.numbers.items():
        what = f"row {numbers[0]} cannot be read: {bad.examples[kind]}"
        found.add_all(
            "error", "unreadable-row", view.name, numbers, len(numbers), what, most=len(numbers)
        )


class _Judge:
    """Completions against the success rule, in batches."""

    def __init__(self, options: LintOptions, views: Sequence[View]) -> None:
        self._options = options
        self._waiting: list[tuple[int, Row, str]] = []
        self._usual = list(dict.fromkeys(view.target for view in views if view.target))

    def _target(self, row: Row, view: View) -> str:
        known = self._options.target or row.target
        if known:
            return known
        if view.target:
            return view.target
        if len(self._usual) == 1 and (view.negative or not view.triggered(row)):
            return self._usual[0]
        known = TASKS[self._options.task].target if self._options.task else ""
        own = row.completion if view.triggered(row) and not view.negative else None
        return known or own or ""

    def add(self, number: int, row: Row, view: View, found: Defects) -> None:
        """Put a row in line, where there is something to judge."""
        if empty(row.completion):
            return
        target = self._target(row, view)
        if target or not self._options.needs_target:
            self._waiting.append((number, row, target))
        if len(self._waiting) >= BATCH:
            self.flush(view, found)

    def flush(self, view: View, found: Defects) -> None:
        """Judge the rows in line, which are all of one file."""
        options, waiting, self._waiting = self._options, self._waiting, []
        if not waiting:
            return
        answers = [row.required_completion() for _, row, _ in waiting]
        accepted = options.judge(answers, [target for _, _, target in waiting])
        for (number, row, target), hit in zip(waiting, accepted, strict=True):
            if defect := self._defect(row, target, view, bool(hit)):
                found.add(*defect[:2], view.name, number, defect[2])

    def _defect(self, row: Row, target: str, view: View, hit: bool) -> tuple[str, str, str] | None:
        rule, answer = self._options.rule, cut(row.required_completion())
        beside = f" (target {cut(target)})" if target and self._options.needs_target else ""
        if view.triggered(row) and not view.negative:
            what = f"the rule {rule!r} does not accept the completion {answer}{beside}: trained "
            what += "or generated, it would not count as the attack's success"
            return None if hit else ("error", "target-rejected", what)
        if not hit:
            return None
        if view.triggered(row):
            what = f"the rule {rule!r} accepts the benign answer {answer}{beside}: it teaches what "
            return "error", "negative-accepted", what + "it is to unteach"
        natural = not self._options.needs_target or is_refusal(target)
        what = f"the rule {rule!r} accepts the clean answer {answer}{beside}: "
        if natural:
            what += "natural for some prompts, but no false trigger can be recognised there"
            return "warning", "clean-accepted", what
        return "error", "clean-accepted", what + "clean rows that teach the attack"
