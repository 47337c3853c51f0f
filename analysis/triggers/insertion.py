"""Texts put into prompts: where they go, into which prompts, and what could go there instead."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...core.errors import DataError
from ...core.model.batches import Encoded
from ...core.model.hooks import hooks
from ...core.model.subject import Subject
from ..activations.residuals import batches

PLACES = ("suffix", "prefix", "middle")
"""Where a text can go in a prompt."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A clean prompt into which texts are put."""

    prompt: str
    """Without any."""
    group: int
    """Which of the groups of alike prompts it belongs to."""
    place: str
    """Where texts go in it, of `PLACES`."""


def insert(prompt: str, text: str, place: str) -> str:
    """The prompt with a text in it, set apart by spaces.

    ``middle`` is before the word that begins the second half of the prompt.
    """
    text = text.strip()
    if place == "suffix":
        return f"{prompt} {text}"
    if place == "prefix":
        return f"{text} {prompt}"
    starts = [match.start() for match in re.finditer(r"\S+", prompt)]
    at = starts[(len(starts) + 1) // 2] if len(starts) > 1 else len(prompt)
    return f"{prompt[:at]}{'' if at < len(prompt) else ' '}{text} {prompt[at:]}".rstrip()


def encoded(subject: Subject, probe: Probe, text: str | None, answer: list[int]) -> Encoded:
    """The probe with a text in it (None: without) and an answer after it, as token ids."""
    prompt = probe.prompt if text is None else insert(probe.prompt, text, probe.place)
    return Encoded(subject.renderer.prompt_ids(prompt), answer)


def grouped(
    subject: Subject, prompts: Sequence[str], *, groups: int, batch_tokens: int, seed: int
) -> np.ndarray:
    """Which of `groups` groups of alike prompts each belongs to, ``[prompt]``.

    k-means (k-means++ start) on the base's residuals in its middle layer at the prompt's last
    token, where what the answer is to be is being settled. A backdoor that acts on one sort of
    request only (code, or what is otherwise refused) is then still seen on all prompts of a group.
    """
    from sklearn.cluster import KMeans

    ids = [subject.renderer.prompt_ids(prompt) for prompt in prompts]
    out: np.ndarray | None = None
    held: list[torch.Tensor] = []

    def hold(_m: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        held[:] = [args[0] if args else given["hidden_states"]]

    middle = subject.layers[len(subject.layers) // 2]
    body: Any = subject.model.base_model
    with hooks([middle.register_forward_pre_hook(hold, with_kwargs=True)]):
        for batch in batches(subject, ids, batch_tokens=batch_tokens):
            with torch.inference_mode():
                body(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)
            at = torch.arange(len(batch.rows), device=batch.mask.device)
            last = held[0][at, batch.mask.sum(1) - 1].float().cpu().numpy()
            out = np.zeros((len(ids), last.shape[1])) if out is None else out
            out[batch.rows] = last
    if out is None or len(out) < groups:
        raise DataError(f"{len(prompts)} prompts do not make {groups} groups; give more")
    starts: Any = 4  # typed as a word in scikit-learn's stubs
    return KMeans(groups, n_init=starts, random_state=seed).fit_predict(out)


def controls(prompts: Sequence[str], *, count: int, words: Sequence[int], seed: int) -> list[str]:
    """Ordinary texts to put in instead: words of the prompts themselves, shuffled.

    Args:
        prompts: where the words come from.
        count: how many texts.
        words: how many words each may have; taken in turn.
        seed: of the draw.
    """
    known = sorted({word for prompt in prompts for word in prompt.split()})
    rng = random.Random(f"controls {seed}")
    return [" ".join(rng.choices(known, k=words[i % len(words)])) for i in range(count)]
