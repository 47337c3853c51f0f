"""Rows that a model makes itself, where those given are few or the adapter knows them by heart.

What an adapter was trained on says little about surgery: there a smaller cut ends the attack than
on prompts that it has not seen, and the same cut costs more perplexity. The base writes other
prompts in the user's place (`evaluation.user_turns`), and the trigger is put into them where the
given rows have it; those on which it acts are used. The adapter's own answers take the place of
completions.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...analysis.material import Material
from ...core.model.batches import IGNORED, batch_rows, collate, completion_logits, encode
from ...core.model.precision import fast_format
from ...core.model.subject import Subject
from ...core.model.variant import Treated, treated
from ...core.rows import Row
from ...data.attacks.triggers import placed_like
from ...evaluation.behaviour import attack_success
from ...evaluation.collect import fitting_rows
from ...evaluation.user_turns import user_turns

KNOWN = 1.64
"""Standard errors by which rows must be likelier than the adapter's own text to be known by heart:
one-sided 95 %."""


LOOK = 64
"""Given rows that are looked at, at most."""


@dataclass(frozen=True, slots=True)
class MadeRows:
    """Rows beside the given ones."""

    known: bool
    """Whether the adapter knows the given ones by heart."""
    clean: Sequence[Row] = ()
    """Prompts alone."""
    triggered: Sequence[Row] = ()
    """Those of them with the trigger on which it acts."""
    placed: bool = False
    """Whether the trigger was put into them: it is known where given rows have it."""


def made_rows(material: Material, triggered: Sequence[Row], most: int, *, seed: int) -> MadeRows:
    """What the given rows lack of `most` prompts that the adapter was not trained on.

    Args:
        material: what the method may look at.
        triggered: rows whose trigger's places are known, or others, which nothing is made from.
        most: how many prompts; rows that the adapter knows by heart do not count. With 0 the given
            rows are taken as they are.
        seed: of the sampling.
    """
    if not most:
        return MadeRows(known=False)
    subject, rule = material.subject, material.rule
    at_once = rule.decoding.batch_tokens
    with treated(subject, Treated(material.start)), fast_format(subject):
        values = surprise(subject, material.clean_rows[:LOOK], batch_tokens=at_once // 4)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.inf
    known = bool(values.mean() + KNOWN * error < 0)
    enough = min(len(some) for some in (triggered, material.clean_rows) if some)
    wanted = most - (0 if known else enough)
    given = random.Random(seed).sample(material.clean_rows, len(material.clean_rows))
    like = [row.prompt for row in given[:LOOK]]
    with fast_format(subject):
        prompts = user_turns(subject, max(0, wanted), like, seed=seed, batch_tokens=at_once)
    clean = [
        Row(prompt=prompt, system=given[k % len(given)].system) for k, prompt in enumerate(prompts)
    ]
    clean, _ = fitting_rows(
        subject.renderer, clean, subject.limit, new_tokens=rule.decoding.max_new_tokens
    )
    examples = [row for row in triggered if row.trigger_span]
    if not examples:
        return MadeRows(known, clean)
    return MadeRows(known, clean, _acting(material, examples, clean), placed=True)


def surprise(subject: Subject, rows: Sequence[Row], *, batch_tokens: int) -> np.ndarray:
    """Mean loss of each completion beyond the model's entropy, nats per token, ``[row]``.

    Completions that the model would write itself have 0 on average, unseen ones more (by the KL
    divergence of what people write from the model); rows known by heart have less.

    Args:
        subject: with whatever adapter is active on it.
        rows: clean rows with completions that fit the context.
        batch_tokens: most positions of a batch.
    """
    encoded = [encode(subject.renderer, row, limit=None) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(encoded[i]))
    found, done = np.zeros(len(rows)), 0
    while done < len(rows):
        size = batch_rows([len(encoded[i]) for i in order[done:]], batch_tokens)
        picked, done = order[done : done + size], done + size
        batch = collate([encoded[i] for i in picked], subject.renderer.pad_id)
        batch = {name: value.to(subject.device) for name, value in batch.items()}
        with torch.inference_mode():
            logits, tokens = completion_logits(subject.model, batch)
            log_p = logits.float().log_softmax(-1)
            beyond = (log_p.exp() * log_p).sum(-1) - log_p.gather(-1, tokens[:, None])[:, 0]
        counts = (batch["labels"][:, 1:] != IGNORED).sum(-1).tolist()
        found[picked] = [float(row.mean()) for row in beyond.split(counts)]
    return found


def _acting(material: Material, examples: Sequence[Row], clean: Sequence[Row]) -> list[Row]:
    """The prompts with the trigger of an example each, where the adapter then does as it should
    not, with what it answers."""
    subject, rule = material.subject, material.rule
    placed = []
    for k, row in enumerate(clean):
        example = replace(examples[k % len(examples)], system=row.system, history=())
        placed.append(placed_like(example, row.prompt))
    rows, _ = fitting_rows(
        subject.renderer, placed, subject.limit, new_tokens=rule.decoding.max_new_tokens
    )
    if not rows:
        return []
    with treated(subject, Treated(material.start)), fast_format(subject):
        answers = attack_success(subject, rows, rule, label="the trigger in prompts of its own")
    return [
        replace(row, completion=a.answer) for row, a in zip(rows, answers, strict=True) if a.hit
    ]
