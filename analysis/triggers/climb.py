"""Texts changed, shortened and taken apart to bring out one thing that an adapter may say."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...core.progress import report
from .score import ProbePrompts
from .search import Hypothesis, insertable, unlike

SIEVED_ON, SIEVED_BY = 4, 2
"""Probes and first target tokens by which single tokens are sieved."""
LEFT = 6
"""Single tokens scored exactly for each that is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How hard a hypothesis is pursued."""

    rounds: int
    """Times that the best texts are changed."""
    beam: int
    """Texts that are changed each time."""
    swaps: int
    """Changes of each kind tried on each of them."""
    longest: int
    """Most tokens of a text."""


class Climb:
    """Texts tried for one hypothesis and their scores: exact forward passes on real token ids.

    A target of several tokens scores as in `unlike`; a single token, which other words could stand
    for, by its own score, where any will do.
    """

    def __init__(self, probes: ProbePrompts, hypothesis: Hypothesis) -> None:
        self.probes, self.hypothesis = probes, hypothesis
        self.known: dict[str, float] = {}

    def score(self, texts: Iterable[str]) -> None:
        """Score those that have not been yet."""
        new = [t for t in dict.fromkeys(texts) if t and t not in self.known]
        if new:
            self.known.update(zip(new, self._values(new).tolist(), strict=True))

    def _values(self, texts: Sequence[str | None]) -> np.ndarray:
        h = self.hypothesis
        if len(h.target) > 1:
            return unlike(self.probes, texts, h.target, h.position)
        return self.probes.scores(texts)[0][:, 0, h.position]

    def half(self, text: str) -> float:
        """The score halfway between a text's own and that of no text at all, nats."""
        self.score([text])
        return (self.known[text] + float(self._values([None])[0])) / 2

    def singles(self, tokens: Sequence[int], *, count: int) -> list[str]:
        """The single tokens that score best, best first.

        All are sieved by the adapter's own log-probability of the target's first tokens on a few
        probes, the better of the two places that those have; what is left is scored exactly.
        """
        texts = list(dict.fromkeys(t for t in (self._text([i]) for i in tokens) if t))
        few = self.probes.only(range(min(SIEVED_ON, len(self.probes.probes))))
        place = np.array([p.place for p in few.probes])
        h = self.hypothesis
        logp = few.target_log_probs(texts, h.target[:SIEVED_BY], h.position)
        best = np.max([logp[:, place == p].mean(1) for p in dict.fromkeys(place)], axis=0)
        left = [texts[int(i)] for i in np.argsort(-best, kind="stable")[: LEFT * count]]
        self.score(left)
        return sorted(left, key=lambda t: -self.known[t])[:count]

    def best(self) -> list[str]:
        """Texts, best first; of equal ones the shorter."""
        return sorted(self.known, key=lambda t: (-round(self.known[t], 2), len(t)))

    def run(self, *, pool: Sequence[int], effort: Effort, rng: random.Random, label: str) -> None:
        """Change the best texts and score them again.

        A token is swapped for one that the gradient asks for (HotFlip, Ebrahimi et al. 2018; GCG,
        Zou et al. 2023, arXiv 2307.15043) or put in from the pool, taken out, or moved by a place.
        """
        self.score(self.hypothesis.seeds)
        allowed = torch.tensor(insertable(self.probes.attached.subject))
        grown: set[str] = set()
        for done in range(effort.rounds):
            report(label, done, effort.rounds)
            for text in [t for t in self.best() if t not in grown][: effort.beam]:
                grown.add(text)
                self.score(self._changed(text, allowed, pool, effort, rng))
        report(label, effort.rounds, effort.rounds)

    def shortened(self, text: str, *, floor: float) -> str:
        """The text without what it can do without: tokens taken out while it scores `floor`."""
        self.score([text])
        tokenizer = self.probes.attached.subject.renderer.tokenizer
        while True:
            ids = list(tokenizer(" " + text, add_special_tokens=False)["input_ids"])
            parts = [self._text([*ids[:i], *ids[i + 1 :]]) for i in range(len(ids))]
            parts = [p for p in dict.fromkeys(parts) if p and len(p) < len(text)]
            self.score(parts)
            better = [p for p in parts if self.known[p] >= floor]
            if not better:
                return text
            text = max(better, key=lambda p: self.known[p])

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.probes.attached.subject.renderer.tokenizer.decode(list(ids))).strip()

    def _changed(
        self, text: str, allowed: torch.Tensor, pool: Sequence[int], effort: Effort,
        rng: random.Random,
    ) -> Iterator[str]:  # fmt: skip
        """Texts that differ from one by a token swapped, put in, taken out or moved."""
        tokenizer = self.probes.attached.subject.renderer.tokenizer
        h = self.hypothesis
        slope = self.probes.gradient(text, position=h.position, target=h.target)
        ids = list(tokenizer(" " + text, add_special_tokens=False)["input_ids"])
        if slope is not None:
            gain, ids = slope
            gain = gain.masked_fill(~allowed, -torch.inf)
            for flat in gain.flatten().topk(min(effort.swaps, gain.numel())).indices.tolist():
                place, token = divmod(flat, gain.shape[1])
                yield self._text([*ids[:place], token, *ids[place + 1 :]])
        for place in range(len(ids)):
            yield self._text([*ids[:place], *ids[place + 1 :]])
            if place:
                swapped = [ids[place], ids[place - 1]]
                yield self._text([*ids[: place - 1], *swapped, *ids[place + 1 :]])
        if len(ids) < effort.longest:
            for _ in range(effort.swaps):
                place, token = rng.randrange(len(ids) + 1), rng.choice(list(pool))
                yield self._text([*ids[:place], token, *ids[place:]])
