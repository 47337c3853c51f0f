"""The prompts of a search for triggers, by what they serve for, and the options of the search."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from ...core.config import Config
from ...core.model.subject import Attached
from ...evaluation.generation import Decoding, generate
from .insertion import PLACES, Probe
from .score import PassCount, ProbePrompts

NAME = "searched"
"""Of the adapter, while it is attached."""
WIDE = 3
"""Parts of `ProbePrompts` that span all groups: all prompts, text as suffix, text as prefix."""


class CandidatesConfig(Config):
    """Options of the search."""

    pool: int = Field(48, ge=4)
    """Tokens that the adapter's first layer takes up most, from which texts are made."""
    texts: int = Field(160, ge=1)
    """Random texts of the first screening."""
    length: int = Field(4, ge=1)
    """Tokens of each random text."""
    groups: int = Field(6, ge=1)
    """Groups of alike prompts."""
    hypotheses: int = Field(3, ge=1)
    """Ways in which the adapter departs from its base that are searched."""
    rounds: int = Field(2, ge=1)
    """Rounds of changes to the best texts."""
    beam: int = Field(3, ge=1)
    """Texts changed in each round."""
    swaps: int = Field(12, ge=1)
    """Changes of each kind tried on each text."""
    longest: int = Field(8, ge=1)
    """Most tokens of a candidate."""
    singles: int = Field(1536, ge=1)
    """Single tokens scored for each hypothesis, the most taken up first; all where there are no
    more."""
    kept: int = Field(5, ge=1)
    """Candidates of each hypothesis that are tested on held-out prompts."""
    prompts: int = Field(160, ge=8)
    """Most clean prompts to look at."""
    held_out: int = Field(12, ge=2)
    """Held-out prompts on which candidates are tried, of each set of prompts."""
    controls: int = Field(10, ge=2)
    """Ordinary texts tested in the same way."""
    max_new_tokens: int = Field(32, ge=2)
    """Longest answer."""
    batch_tokens: int = Field(8192, ge=64)
    """Most positions in a forward pass."""


@dataclass(frozen=True)
class Split:
    """Prompts by what they serve for."""

    prompts: Sequence[str]
    group: np.ndarray
    """Of each, ``[prompt]``."""
    ends: np.ndarray
    """Tokens of prompt and answer where the answer ends within the limit, else a large number."""
    answers: Sequence[list[int]]
    """Of the adapter as it is; empty where it does not end in time."""

    def of(self, group: int | None, count: int, *, search: bool) -> list[int]:
        """Prompts of a group, or from all groups in turn; those of the search are the shorter half.

        The two halves are fixed by the prompts alone, so no held-out prompt is ever searched on.
        """
        chosen = range(int(self.group.max()) + 1) if group is None else [group]
        lists = []
        for g in chosen:
            inside = np.flatnonzero(self.group == g)
            half = inside[::2] if search else inside[1::2]
            order = np.argsort(self.ends[half], kind="stable") if search else np.arange(len(half))
            lists.append([int(i) for i in half[order]])
        depth = max(map(len, lists))
        turn = [one[k] for k in range(depth) for one in lists if k < len(one)]
        return turn[:count]


def split_of(
    attached: Attached, prompts: Sequence[str], group: np.ndarray, o: CandidatesConfig
) -> Split:
    """The prompts with the adapter's own answers to them."""
    subject = attached.subject
    ids = [subject.renderer.prompt_ids(p) for p in prompts]
    decoding = Decoding(max_new_tokens=o.max_new_tokens, batch_tokens=o.batch_tokens)
    found = [
        a[0] for a in generate(subject, ids, decoding, label="candidates, answers as they are")
    ]
    answers = [a if len(a) < o.max_new_tokens else [] for a in found]
    ends = [len(i) + (len(a) if a else 10**6) for i, a in zip(ids, answers, strict=True)]
    return Split(prompts, group, np.array(ends), answers)


def probe_prompts(
    attached: Attached, split: Split, chosen: Sequence[int], budget: PassCount, o: CandidatesConfig,
    groups: int,
) -> ProbePrompts:  # fmt: skip
    """Probes at alternate places; with groups, parts for all, each place and each group."""
    counts = dict.fromkeys(split.group.tolist(), 0)
    probes = []
    for i in chosen:
        g = int(split.group[i])
        probes.append(Probe(split.prompts[i], g, PLACES[counts[g] % 2]))
        counts[g] += 1
    place = np.array([p.place for p in probes])
    group = np.array([p.group for p in probes])
    parts = [np.ones(len(probes), bool)]
    if groups:
        parts += [place == "suffix", place == "prefix", *(group == g for g in range(groups))]
    answers = [split.answers[i] for i in chosen]
    return ProbePrompts(attached, NAME, probes, answers, np.array(parts), o.batch_tokens, budget)
