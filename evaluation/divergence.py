"""KL divergence of a treated model from an adapter, per token of the adapter's own answers.

Over the positions t of the greedy answers y to some prompts x, p with the adapter, q treated:
``KL(p || q) = mean over t of sum over the vocabulary of p(. | x, y_<t) (log p - log q)``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from ..core.adapter.factors import Adapter
from ..core.errors import DataError
from ..core.model.batches import Encoded, collate, completion_logits
from ..core.model.subject import Subject
from ..core.model.variant import NAME, Treated, treated
from ..core.progress import report
from ..core.records.results import OwnAnswers
from ..core.rendering.prompts import Renderer
from ..core.rows import Row
from .generation import Decoding, generate

MOST_BYTES = 256 * 2**20
"""Most bytes of the adapter's log-probabilities (float32) that are held; the passes themselves take
about three times as much besides."""
REFERENCE = "reference"
_SLICE = 2**22
"""Log-probabilities that are subtracted at a time."""

Side = Callable[[], AbstractContextManager[object]]
"""Makes the context in which the model is one of the two."""


def greedy_answers(
    subject: Subject, rows: Sequence[Row], decoding: Decoding, *, label: str
) -> list[Encoded]:
    """The greedy answer to the prompt of each row as token ids, with what ends it.

    Args:
        subject: with whatever adapter is active on it.
        rows: prompts that leave room for an answer.
        decoding: how long answers may be; they are greedy whatever it says.
        label: for the progress bar.
    """
    prompts = [subject.renderer.prompt_ids(row) for row in rows]
    greedy = replace(decoding, temperature=0.0, samples=1)
    answers = generate(subject, prompts, greedy, label=label)
    return [
        closed(subject.renderer, prompt, samples[0], new_tokens=decoding.max_new_tokens)
        for prompt, samples in zip(prompts, answers, strict=True)
    ]


def closed(renderer: Renderer, prompt: list[int], answer: list[int], *, new_tokens: int) -> Encoded:
    """A prompt and a generated answer, with what ends it unless it was cut off.

    Args:
        renderer: what ends answers.
        prompt: token ids.
        answer: generated token ids, without what ended them.
        new_tokens: longest answer; one as long as this was cut off.
    """
    end = renderer.closing_ids if renderer.stop_text else renderer.closing_ids[-1:]
    return Encoded(prompt, answer if len(answer) >= new_tokens else [*answer, *end])


def packed(answers: Sequence[Encoded]) -> OwnAnswers:
    """Answers as the record in which they are kept."""
    return OwnAnswers(
        ids=np.array([token for row in answers for token in (*row.prompt, *row.completion)]),
        prompt_tokens=np.array([len(row.prompt) for row in answers]),
        answer_tokens=np.array([len(row.completion) for row in answers]),
    )


def unpacked(kept: OwnAnswers) -> list[Encoded]:
    """The answers of their record."""
    lengths = np.stack([kept.prompt_tokens, kept.answer_tokens], 1).reshape(-1)
    parts = [part.tolist() for part in np.split(kept.ids, np.cumsum(lengths)[:-1])]
    return [Encoded(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]


def divergences(
    subject: Subject,
    reference: Adapter,
    state: Treated,
    answers: Sequence[Encoded],
    *,
    batch_tokens: int,
    most_bytes: int = MOST_BYTES,
    label: str = "KL divergence",
) -> tuple[np.ndarray, np.ndarray]:
    """KL(reference || state) over each answer, nats ``[row]``, and the answer's tokens ``[row]``.

    Exact over the whole vocabulary; the sampling temperature of a state does not count. Sum and
    count are kept apart, so that batches do not matter. A token that the state rules out and the
    reference does not gives infinity.

    Args:
        subject: the base, without adapter.
        reference: whose answers they are.
        state: what is compared with it.
        answers: prompts with the reference's own answers.
        batch_tokens: most positions of a batch; one row may have more.
        most_bytes: most bytes of log-probabilities to hold; longer answers are measured in pieces.
        label: for the progress bar.

    Raises:
        DataError: no answers, one without tokens, or logits that are not numbers.
    """
    if not answers or not all(row.completion for row in answers):
        raise DataError("KL divergence over no tokens; give clean prompts and the answers to them")
    d_vocab = subject.model.config.get_text_config().vocab_size
    most = max(1, most_bytes // (4 * d_vocab))
    sums, counts = np.zeros(len(answers)), np.array([len(row.completion) for row in answers])
    done, total = 0, int(counts.sum())
    with _sides(subject, reference, state) as (with_reference, with_state):
        for chunk in _chunks(_batches(answers, batch_tokens, most), most):
            with with_reference():
                held = [_logits(subject, batch).log_softmax(-1) for batch in chunk]
            with with_state():
                for batch, log_p in zip(chunk, held, strict=True):
                    values = _kl(log_p, _logits(subject, batch)).cpu().double().numpy()
                    np.add.at(sums, batch.token_rows, values)
                    done += len(values)
            report(label, done, total)
    if np.isnan(sums).any():
        raise DataError("the model's logits are not numbers; its weights or the adapter are broken")
    return sums, counts


@contextmanager
def _sides(subject: Subject, reference: Adapter, state: Treated) -> Iterator[tuple[Side, Side]]:
    """Contexts in which the model is the reference, and the treated one.

    Two adapters are attached once and switched; replaced base weights are put on and off.
    """
    if state.weights:
        yield partial(treated, subject, Treated(reference)), partial(treated, subject, state)
        return
    adapters = {REFERENCE: reference} | ({NAME: state.adapter} if state.adapter else {})
    with subject.attached(adapters) as attached:
        other = NAME if state.adapter else None
        yield partial(attached.using, REFERENCE), partial(attached.using, other)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Answers, or pieces of long ones, that run together."""

    rows: list[int]
    """Number of the answer, ``[batch]``."""
    encoded: list[Encoded]

    @property
    def token_rows(self) -> np.ndarray:
        """Number of the answer of each of its tokens, ``[token]``."""
        return np.repeat(self.rows, [len(row.completion) for row in self.encoded])


def _batches(answers: Sequence[Encoded], batch_tokens: int, most: int) -> Iterator[_Batch]:
    """The answers in batches of at most so many positions, and with logits at most at `most`."""
    pieces = [
        (i, Encoded(row.prompt + row.completion[:at], row.completion[at : at + most]))
        for i, row in enumerate(answers)
        for at in range(0, len(row.completion), most)
    ]
    pieces.sort(key=lambda piece: (len(piece[1]), len(piece[1].prompt)))
    rows: list[int] = []
    taken: list[Encoded] = []
    for row, piece in pieces:
        more = [*taken, piece]
        tokens = sum(len(item.completion) for item in more)
        if taken and (len(more) * max(map(len, more)) > batch_tokens or tokens > most):
            yield _Batch(rows, taken)
            rows, taken = [], []
        rows.append(row)
        taken.append(piece)
    yield _Batch(rows, taken)


def _chunks(batches: Iterator[_Batch], most: int) -> Iterator[list[_Batch]]:
    """Batches of at most `most` answer tokens together, at least one."""
    chunk: list[_Batch] = []
    held = 0
    for batch in batches:
        size = sum(len(row.completion) for row in batch.encoded)
        if chunk and held + size > most:
            yield chunk
            chunk, held = [], 0
        chunk.append(batch)
        held += size
    yield chunk


def _logits(subject: Subject, batch: _Batch) -> torch.Tensor:
    """Logits that predict the answers' tokens, row by row, ``[token, d_vocab]`` float32."""
    given = collate(batch.encoded, subject.renderer.pad_id)
    given = {name: value.to(subject.device) for name, value in given.items()}
    with torch.inference_mode():
        return completion_logits(subject.model, given)[0].float()


def _kl(log_p: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL divergence at each position, nats ``[token]``; rounding below 0 counts as 0.

    Args:
        log_p: log-probabilities of the reference, ``[token, d_vocab]``.
        logits: of the other, ``[token, d_vocab]``.
    """
    rows = max(1, _SLICE // logits.shape[-1])
    out = []
    for known, other in zip(log_p.split(rows), logits.split(rows), strict=True):
        p = known.exp()
        terms = (p * (known - other.log_softmax(-1))).where(p != 0, 0.0)
        out.append(terms.sum(-1).clamp_min(0))
    return torch.cat(out)
