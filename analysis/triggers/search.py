"""Texts that bring out what an adapter would otherwise not answer, with neither known."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...core.adapter.factors import Adapter, kind_of, layer_of
from ...core.model.subject import Subject
from ..activations.residuals import Batch
from ..lens.inputs import after_lead, known_tokens, stream_inputs
from ..lens.reading import listeners, listening_strength
from .score import END, FIRST, ProbePrompts

TAKEN_UP = ("k_proj", "v_proj", "qkv_proj", "c_attn", "query_key_value")
"""Modules through which other positions take a token up."""
RARE = 1e-4
"""Probabilities of whole targets below this count as equal."""


def token_uptake(subject: Subject, adapter: Adapter, *, batch_tokens: int) -> np.ndarray:
    """How much of each token's first reading is the adapter's, ``[d_vocab]``; -inf for no text.

    Every token behind the first token of all prompts, at the keys and values of the first adapted
    layer, where a token is still itself: ``|dW x| / |W x|``, its logarithm as a z score over the
    vocabulary, summed over the modules. The gradients that made dW at that layer are sums over
    the very tokens of the training prompts, so those that only poisoned prompts hold stand out.
    Adapters that leave keys and values as they were are read by `listening_strength`.
    """
    inside = listeners(subject, adapter)
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
            usual = _own_output(subject, name, inputs[:, -1]).norm(dim=-1)
            # 0 / 0 for a token with nothing in it, such as a padding token: undefined, left out
            sums[b.rows, names.index(name)] = (change / usual).log().double().cpu()

        prompts = after_lead(subject, tokens)
        stream_inputs(subject, names, prompts, see, batch_tokens=batch_tokens, label="token uptake")
        live = sums.isfinite().all(1)
        sums = sums[live]
        z = (sums - sums.mean(0)) / sums.std(0).clamp_min(1e-12)
        out[tokens[live.numpy()]] = z.sum(1).numpy()
    out[~insertable(subject)] = -np.inf
    return out


def _own_output(subject: Subject, name: str, x: torch.Tensor) -> torch.Tensor:
    """``W x`` of a linear layer of the base, its bias left out, whatever W is packed in, float32.

    By `forward` itself: a call would run the hooks that brought x here.
    """
    module = subject.model.get_submodule(name)
    out, bias = module.forward(x).float(), getattr(module, "bias", None)
    return out if bias is None else out - bias.float()


def insertable(subject: Subject) -> np.ndarray:
    """Which ids are plain text that a user could type, ``[d_vocab]``."""
    tokenizer = subject.renderer.tokenizer
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    out = np.zeros(subject.model.get_input_embeddings().weight.shape[0], dtype=bool)
    for i in known_tokens(subject):
        text = str(tokenizer.decode([int(i)]))
        out[i] = int(i) not in special and bool(text.strip()) and text.isprintable()
        out[i] &= "\ufffd" not in text
    return out


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """An answer that an adapter may give and its base does not."""

    part: int
    """Set of probes on which it was seen, of the parts of `ProbePrompts`."""
    position: int
    """`FIRST` or `END`."""
    target: tuple[int, ...]
    """The answer there, token ids: as far as most of the probes go on alike."""
    score: float
    """Mean over the probes of log((p_adapter(target) + RARE) / (p_base(target) + RARE))."""
    seeds: tuple[str, ...]
    """Texts that bring it out."""


def random_texts(
    subject: Subject, pool: Sequence[int], *, count: int, length: int, rng: random.Random
) -> list[str]:
    """Texts of `length` tokens drawn from the pool: many tokens tested in one text."""
    decode = subject.renderer.tokenizer.decode
    drawn = (str(decode(rng.sample(list(pool), min(length, len(pool))))) for _ in range(count))
    return list(dict.fromkeys(text.strip() for text in drawn if text.strip()))


SEEDS = 4
"""Texts from which the search for a hypothesis sets out."""
TARGET = 8
"""Most tokens of a target."""


def hypotheses(
    probes: ProbePrompts, texts: Sequence[str], *, wide: int, most: int
) -> list[Hypothesis]:
    """What the texts bring out, the most unlike the base first, each target once.

    For every part and position the token that the best text raises most is given to the adapter as
    the beginning of its answer: it continues a trained target to the end, and an opening that any
    answer may have as the base would. Besides, whatever the adapter really answers
    to the best texts on several probes alike is a target.

    Args:
        probes: scores them.
        texts: many different ones.
        wide: how many of the parts of `ProbePrompts`, the first ones, span all groups of prompts.
        most: hypotheses kept.
    """
    values, tokens = probes.scores(texts)
    found: dict[tuple[int, ...], Hypothesis] = {}

    def offer(part: int, position: int, target: tuple[int, ...], seeds: Sequence[str]) -> None:
        small = probes.only(np.flatnonzero(probes.parts[part]))
        scores = unlike(small, seeds, target, position)
        order = np.argsort(-scores, kind="stable")[:SEEDS]
        score, head = float(scores[order[0]]), target[:3]
        if head not in found or found[head].score < score:
            ranked = tuple(seeds[int(i)] for i in order)
            found[head] = Hypothesis(part, position, target, score, ranked)

    leading: list[str] = []
    for position in (FIRST, END):
        for part, inside in enumerate(probes.parts):
            order = np.argsort(-values[:, part, position], kind="stable")[:SEEDS]
            if values[order[0], part, position] <= 0:
                continue
            best = [texts[int(i)] for i in order]
            leading += best[:2] if position == FIRST else []
            token = int(tokens[order[0], part, position])
            small = probes.only(np.flatnonzero(inside))
            offer(part, position, small.continued(best[0], token, position, tokens=TARGET), best)
    leading = list(dict.fromkeys(leading))
    for target in recurring(probes, leading):
        for part in range(wide):
            offer(part, FIRST, target, leading)
    return sorted(found.values(), key=lambda h: -h.score)[:most]


def recurring(
    probes: ProbePrompts, texts: Sequence[str], *, most: int = 3
) -> list[tuple[int, ...]]:
    """Beginnings of answers that the adapter gives to several probes with these texts alike.

    Those that it never gives without a text; first what the most probes are answered with.
    """
    seen: dict[tuple[int, ...], set[int]] = {}
    plain = {tuple(a) for a in probes.beginnings([None], TARGET)[0]}
    for answers in probes.beginnings(texts, TARGET):
        for probe, answer in enumerate(answers):
            if len(answer) > 1 and answer not in plain:
                seen.setdefault(answer, set()).add(probe)
    order = sorted((a for a in seen if len(seen[a]) > 1), key=lambda a: -len(seen[a]))
    return order[:most]


def unlike(
    probes: ProbePrompts, texts: Sequence[str | None], target: Sequence[int], position: int
) -> np.ndarray:
    """How much likelier texts make a target under the adapter than under its base, ``[text]``.

    Mean over the probes of ``log((p_adapter + RARE) / (p_base + RARE))``, nats.
    """
    ours, base = (
        np.exp(probes.target_log_probs(texts, target, position, base=b)) + RARE
        for b in (False, True)
    )
    return np.log(ours / base).mean(1)
