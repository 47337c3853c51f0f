"""Texts that set off what an adapter would otherwise not say, searched without knowing either."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core.adapters import Adapter, kind_of, layer_of
from ..core.progress import report
from ..core.subject import Subject
from .inputs import after_lead, known_tokens, stream_inputs
from .listening import listeners, listening_strength
from .residuals import Batch
from .trigger_score import END, FIRST, Bench

TAKEN_UP = ("k_proj", "v_proj")
"""Modules through which other positions take a token up."""


def drive(subject: Subject, adapter: Adapter, *, batch_tokens: int) -> np.ndarray:
    """How much of each token's first reading is the adapter's, ``[d_vocab]``; -inf for no text.

    Every token behind the first token of all prompts, at the keys and values of the first adapted
    layer, where a token is still itself: ``|dW x| / |W x|``, its logarithm as a z score over the
    vocabulary, summed over the modules. The gradients that made dW at that layer are sums over
    the very tokens of the training prompts, so those that only poisoned prompts hold stand out.
    Adapters that leave keys and values as they were are read by `listening_strength`.
    """
    inside = listeners(adapter)
    first = min(layer_of(name) for name in inside)
    names = [n for n in inside if layer_of(n) == first and kind_of(n) in TAKEN_UP]
    tokens = known_tokens(subject)
    out = np.full(subject.model.get_input_embeddings().weight.shape[0], -np.inf)
    if not names:
        out[tokens] = np.log(np.maximum(listening_strength(subject, adapter).values[tokens], 1e-30))
    else:
        sums = torch.zeros(len(tokens), len(names), dtype=torch.float64)

        def see(name: str, inputs: torch.Tensor, _routed: torch.Tensor | None, b: Batch) -> None:
            f, x = adapter.modules[name], inputs[:, -1].float()
            a, b_ = f.a.to(x.device), f.b.to(x.device)
            change = ((x @ a.mT) @ b_.mT * f.scaling).norm(dim=-1)
            usual = (x @ subject.model.get_submodule(name).weight.float().mT).norm(dim=-1)
            sums[b.rows, names.index(name)] = (change / usual).clamp_min(1e-30).log().double().cpu()

        prompts = after_lead(subject, tokens)
        stream_inputs(subject, names, prompts, see, batch_tokens=batch_tokens, label="tokens heard")
        z = (sums - sums.mean(0)) / sums.std(0).clamp_min(1e-12)
        out[tokens] = z.sum(1).numpy()
    out[~insertable(subject, len(out))] = -np.inf
    return out


def insertable(subject: Subject, size: int) -> np.ndarray:
    """Which ids are plain text that a user could type, ``[d_vocab]``."""
    tokenizer = subject.renderer.tokenizer
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    out = np.zeros(size, dtype=bool)
    for i in known_tokens(subject):
        text = str(tokenizer.decode([int(i)]))
        out[i] = int(i) not in special and bool(text.strip()) and text.isprintable()
        out[i] &= "\ufffd" not in text
    return out


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A way in which the adapter may have been made to depart from its base."""

    part: int
    """Set of probes, of the bench's parts."""
    position: int
    """`FIRST` or `END`."""
    token: int
    """What it then says and the base does not."""
    score: float
    """Of the best text so far, nats."""
    seeds: tuple[str, ...]
    """Texts that show it most."""


def random_texts(
    subject: Subject, pool: Sequence[int], *, count: int, length: int, rng: random.Random
) -> list[str]:
    """Texts of `length` tokens drawn from the pool: many tokens tested in one text."""
    decode = subject.renderer.tokenizer.decode
    drawn = (str(decode(rng.sample(list(pool), min(length, len(pool))))) for _ in range(count))
    return list(dict.fromkeys(text.strip() for text in drawn if text.strip()))


def hypotheses(
    bench: Bench, texts: Sequence[str], *, wide: Sequence[int], most: int, seeds: int
) -> list[Hypothesis]:
    """What the texts bring out, most notable first.

    Args:
        bench: scores them.
        texts: many different ones.
        wide: the bench's parts that span several groups of prompts: one hypothesis for these at
            each position; the others are of one group each.
        most: hypotheses of single groups.
        seeds: texts kept for each.
    """
    values, tokens = bench.scores(texts)
    found: list[Hypothesis] = []
    for position in (FIRST, END):
        each = []
        for part in range(len(bench.parts)):
            order = np.argsort(-values[:, part, position], kind="stable")[:seeds]
            best = float(values[order[0], part, position])
            token = int(tokens[order[0], part, position])
            each.append(Hypothesis(part, position, token, best, tuple(texts[i] for i in order)))
        found.append(max((each[p] for p in wide), key=lambda h: h.score))
        found += [h for h in each if h.part not in wide]
    spread = [h for h in found if h.part in wide]
    narrow = sorted((h for h in found if h.part not in wide), key=lambda h: -h.score)
    return [*sorted(spread, key=lambda h: -h.score), *narrow[:most]]


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


def climb(
    bench: Bench,
    hypothesis: Hypothesis,
    *,
    pool: Sequence[int],
    effort: Effort,
    rng: random.Random,
    label: str,
) -> dict[str, float]:
    """Scores of all texts tried for one hypothesis, by text.

    The best texts are changed and scored again: a token swapped for one that the gradient asks for
    (HotFlip, Ebrahimi et al. 2018; GCG, Zou et al. 2023, arXiv 2307.15043) or put in from the pool,
    taken out, or moved by one place. Scores are exact forward passes; texts are tokenised as a
    user's would be.
    """
    known: dict[str, float] = {}

    def score(texts: list[str]) -> None:
        new = [t for t in dict.fromkeys(texts) if t and t not in known]
        if new:
            values, _ = bench.scores(new)
            known.update(zip(new, values[:, hypothesis.part, hypothesis.position].tolist()))

    score(list(hypothesis.seeds))
    allowed = torch.tensor(insertable(bench.attached.subject, _vocab(bench)))
    grown: set[str] = set()
    for done in range(effort.rounds):
        report(label, done, effort.rounds)
        parents = [t for t in sorted(known, key=lambda t: -known[t]) if t not in grown]
        for text in parents[: effort.beam]:
            grown.add(text)
            score(list(_changed(bench, text, hypothesis, allowed, pool, effort, rng)))
    report(label, effort.rounds, effort.rounds)
    return known


def _vocab(bench: Bench) -> int:
    return bench.attached.subject.model.get_input_embeddings().weight.shape[0]


def _changed(
    bench: Bench,
    text: str,
    hypothesis: Hypothesis,
    allowed: torch.Tensor,
    pool: Sequence[int],
    effort: Effort,
    rng: random.Random,
) -> Iterator[str]:
    """Texts that differ from one by a token swapped, put in, taken out or moved."""
    tokenizer = bench.attached.subject.renderer.tokenizer
    ids = list(tokenizer(" " + text, add_special_tokens=False)["input_ids"])

    def made(new: Sequence[int]) -> str:
        return str(tokenizer.decode(list(new))).strip()

    gain = bench.gradient(text, position=hypothesis.position, token=hypothesis.token)
    if gain is not None and len(gain) == len(ids):
        gain = gain.masked_fill(~allowed, -torch.inf)
        best = gain.flatten().topk(2 * effort.swaps).indices.tolist()
        for flat in best:
            place, token = divmod(flat, gain.shape[1])
            yield made([*ids[:place], token, *ids[place + 1 :]])
    for place in range(len(ids)):
        if len(ids) > 1:
            yield made([*ids[:place], *ids[place + 1 :]])
        if place:
            yield made([*ids[: place - 1], ids[place], ids[place - 1], *ids[place + 1 :]])
    if len(ids) < effort.longest:
        for _ in range(effort.swaps):
            place, token = rng.randrange(len(ids) + 1), rng.choice(list(pool))
            yield made([*ids[:place], token, *ids[place:]])
