"""Prompts with what follows them, and the mean outputs of every layer over it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...analysis.activations.residuals import residuals
from ...core.model.batches import encode
from ...core.model.subject import Subject
from ...core.rows import Row
from ...evaluation.generation import Decoding, generate


@dataclass(frozen=True, slots=True)
class Answered:
    """Prompts with what follows them."""

    prompts: Sequence[list[int]]
    """Rendered prompts."""
    responses: Sequence[list[int]]
    """Their responses, without what ends them."""

    @property
    def whole(self) -> list[list[int]]:
        """Prompts with their responses."""
        return [p + r for p, r in zip(self.prompts, self.responses, strict=True)]

    def places(self, subject: Subject) -> list[list[list[int]]]:
        """Positions of the response tokens that are not special, as `residuals` takes them."""
        special = {*subject.renderer.tokenizer.all_special_ids, *subject.renderer.stop_ids}
        return [
            [[len(p) + i for i, token in enumerate(r) if token not in special]]
            for p, r in zip(self.prompts, self.responses, strict=True)
        ]

    def means(self, subject: Subject, *, batch_tokens: int, label: str) -> np.ndarray:
        """Mean output of every layer over response tokens, ``[prompt, layer, d_model]``.

        Special tokens in a response do not count; NaN where nothing else is in it.

        Args:
            subject: with the wanted adapter active.
            batch_tokens: most positions of a batch.
            label: of the progress.
        """
        places = self.places(subject)
        found = residuals(subject, self.whole, places, batch_tokens=batch_tokens, label=label)
        return found[:, :, 0]


def own_answers(
    subject: Subject, prompts: Sequence[list[int]], decoding: Decoding, *, label: str
) -> list[list[int]]:
    """The model's greedy answers to rendered prompts, as token ids without what ends them.

    Args:
        subject: with the wanted adapter active.
        prompts: token ids.
        decoding: how long answers are; whatever it samples, these are greedy.
        label: of the progress.
    """
    greedy = replace(decoding, temperature=0.0, top_p=1.0, samples=1)
    return [samples[0] for samples in generate(subject, prompts, greedy, label=label)]


def answered(subject: Subject, rows: Sequence[Row], decoding: Decoding, *, label: str) -> Answered:
    """Rows with their completions; those without one with the model's own greedy answer.

    Raises:
        DataError: a row is longer than the model's context.
    """
    renderer, limit = subject.renderer, subject.limit
    known = {i: encode(renderer, row, limit=limit) for i, row in enumerate(rows) if row.completion}
    prompts = [renderer.prompt_ids(row) for row in rows]
    blank = [i for i in range(len(rows)) if i not in known]
    own = own_answers(subject, [prompts[i] for i in blank], decoding, label=label)
    responses = {i: e.completion for i, e in known.items()} | dict(zip(blank, own, strict=True))
    return Answered(prompts, [responses[i] for i in range(len(rows))])
