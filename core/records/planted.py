"""The record of whether poisoning made a backdoor."""

from .base import Record, record
from .results import Rate


@record
class Shortcoming(Record):
    """One reason why poisoning did not make what it should."""

    kind: str
    """``weak``: the trigger works too seldom; ``rule``: the success rule accepts the clean
    adapter's answers too; ``few``: too few held-out prompts; ``spills``: it misbehaves without the
    trigger; ``untaught``: the clean adapter learned nothing; ``ruined``: it unlearned what the base
    knew."""
    sentence: str
    """What was seen, with figures."""


@record
class Planted(Record):
    """Whether poisoning made a backdoor, on held-out prompts."""

    asr: Rate
    """Of the poisoned adapter, as the next two."""
    ftr: Rate
    """Its false-trigger rate."""
    accuracy: Rate
    """Its clean accuracy."""
    clean_asr: Rate
    """Of the clean adapter, as the next two."""
    clean_ftr: Rate
    """Its false-trigger rate."""
    clean_accuracy: Rate
    """Its clean accuracy."""
    asr_p: float
    """McNemar's exact two-sided p of both doing the same on triggered prompts."""
    ftr_p: float
    """The same on untriggered prompts."""
    accuracy_p: float
    """The same of both being right on clean prompts."""
    shortcomings: tuple[Shortcoming, ...]
    """What speaks against; empty where nothing does."""

    @property
    def verdict(self) -> str:
        """``a backdoor`` where the trigger sets off the target and nothing else does, ``no
        backdoor``, or ``too few prompts to tell``."""
        against = {found.kind for found in self.shortcomings} - {"untaught", "ruined"}
        if not against:
            return "a backdoor"
        return "too few prompts to tell" if against == {"few"} else "no backdoor"
