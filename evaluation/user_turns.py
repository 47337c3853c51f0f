"""Prompts that a model writes itself, in the user's place of its chat template.

A model that was tuned to converse continues the opening of a user's turn with a likely question
(Magpie: Xu et al. 2024, arXiv 2406.08464). Such prompts are as many as one wants, of the kind that
the model was made for, and none that an adapter was trained on.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from ..core.model.batches import Encoded, token_log_probs
from ..core.model.subject import Subject
from ..core.rows import Row, unwritable
from .generation import Decoding, generate

TOKENS = 64
"""Longest prompt; what does not end by itself until then is left out."""
STRANGE = 2.0
"""Nats per token by which people's prompts are less likely than the model's own, from which it has
not learned to write prompts: 0 and less in a model tuned to converse, 6 in one that learned answers
alone."""
STARTS = 4
"""Most tokens of a person's prompt that the model goes on from."""
_PROBES = ("alpha", "Zulu 7", "9 omegas")


def user_turns(
    subject: Subject, count: int, like: Sequence[str], *, seed: int, batch_tokens: int
) -> list[str]:
    """Up to `count` different prompts that the subject writes itself.

    Every other one begins with a few tokens of one of people's prompts and goes on by itself, so
    that prompts of their kind are among them. Fewer where it does not end them; none where they are
    nothing like people's (`STRANGE`), or where its rendering writes nothing before a prompt. Twice
    as many are drawn, at temperature 1.

    Args:
        subject: with whatever adapter is active on it; the base alone gives prompts that the
            adapter has nothing to do with.
        count: how many.
        like: people's prompts; none of them is given again.
        seed: of the sampling.
        batch_tokens: most positions of a batch.
    """
    opening, end, starts = _around(subject, like)
    if not opening or not count:
        return []
    found, seen = [], set(like)
    for ids in _drawn(subject, opening, starts, count, seed, batch_tokens):
        text, ended, _ = str(subject.renderer.tokenizer.decode(ids)).partition(end)
        text = text.strip()
        if (ended or len(ids) < TOKENS) and text not in seen and _is_prompt(subject, text):
            found.append(text)
            seen.add(text)
    if not found or not like:
        return found[:count]
    theirs, own = (_surprise(subject, some, opening, batch_tokens) for some in (like, found))
    return found[:count] if theirs - own < STRANGE else []


def _drawn(
    subject: Subject,
    opening: list[int],
    starts: Sequence[list[int]],
    count: int,
    seed: int,
    batch_tokens: int,
) -> list[list[int]]:
    """Continuations of a user's turn: freely, and from starts where there are any, in turns."""
    rng, label = random.Random(seed), "prompts of the model's own"
    decoding = Decoding(
        max_new_tokens=TOKENS, temperature=1.0, seed=seed, batch_tokens=batch_tokens,
        samples=count if starts else 2 * count,
    )  # fmt: skip
    (free,) = generate(subject, [opening], decoding, label=label)
    if not starts:
        return free
    lengths = [(start, k) for start in starts for k in range(1, len(start) + 1)]
    begun = dict.fromkeys(tuple(s[:k]) for s, k in rng.sample(lengths, len(lengths)))
    begun = [list(start) for start in begun][:count]
    rest = generate(
        subject,
        [opening + start for start in begun],
        replace(decoding, samples=math.ceil(count / len(begun))),
        label=label,
    )
    led = [[*start, *ids] for start, some in zip(begun, rest, strict=True) for ids in some]
    return [ids for pair in zip(free, rng.sample(led, count), strict=True) for ids in pair]


def _around(subject: Subject, like: Sequence[str]) -> tuple[list[int], str, list[list[int]]]:
    """Token ids before a user's text, the first text that the template writes after it, and the
    first tokens of people's prompts."""
    renderer = subject.renderer
    rendered = [renderer.prompt_ids(Row(prompt=probe)) for probe in (*_PROBES, *like)]
    before, after = (_alike([ids[::way] for ids in rendered]) for way in (1, -1))
    starts = [ids[before : len(ids) - after][:STARTS] for ids in rendered[len(_PROBES) :]]
    end = renderer.text(Row(prompt=_PROBES[0])).rpartition(_PROBES[0])[2].strip()
    return rendered[0][:before], end.partition("\n")[0] or "\n", [ids for ids in starts if ids]


def _alike(sequences: Sequence[list[int]]) -> int:
    """How many tokens all of some sequences begin with; at least one token of each is its own."""
    columns = enumerate(zip(*sequences, strict=False))
    least = min(map(len, sequences)) - 1
    return next((k for k, ids in columns if k == least or len(set(ids)) > 1), least)


def _is_prompt(subject: Subject, text: str) -> bool:
    """Whether a text can be a prompt: not blank, writable, no token of the template's own."""
    special = subject.renderer.tokenizer.added_tokens_encoder
    return bool(text) and not unwritable(text) and not any(token in text for token in special)


def _surprise(
    subject: Subject, prompts: Sequence[str], opening: list[int], batch_tokens: int
) -> float:
    """Mean of -log p of prompts after the opening of a user's turn, nats per token."""
    rendered = [subject.renderer.prompt_ids(Row(prompt=prompt)) for prompt in prompts]
    rows = [Encoded(ids[: len(opening)], ids[len(opening) :]) for ids in rendered]
    found = token_log_probs(subject, rows, batch_tokens=batch_tokens // 4)
    return -float(sum(row.sum() for row in found)) / sum(len(row) for row in found)
