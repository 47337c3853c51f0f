"""Answers of a subject, in batches: greedy or sampled, the same whatever the batch."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import LoratomyError
from ..core.model.batches import batch_rows
from ..core.model.subject import Subject
from ..core.progress import report
from ..core.rendering.prompts import Renderer

CHUNK = 16
"""New tokens after which finished rows leave their batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How answers are generated."""

    max_new_tokens: int = 128
    """Longest answer; an end-of-turn token ends it earlier."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Smallest set of tokens with this much probability (nucleus); published: 0.75."""
    samples: int = 1
    """Answers to each prompt."""
    seed: int = 0
    """Of the sampling."""
    batch_tokens: int = 8192
    """Most positions of a batch: rows x (longest prompt + new tokens)."""

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.samples > 1:
            raise LoratomyError(
                f"{self.samples} samples at temperature 0 are all the same; give a temperature"
            )

    def text(self) -> str:
        """In words, for tables."""
        if self.temperature == 0:
            return f"greedy, at most {self.max_new_tokens} new tokens"
        return (
            f"temperature {self.temperature:g}, top-p {self.top_p:g}, {self.samples} samples, "
            f"seed {self.seed}, at most {self.max_new_tokens} new tokens"
        )


def stop_ids(subject: Subject) -> list[int]:
    """The ids that end an answer: the tokenizer's and those of the generation config."""
    listed = subject.model.generation_config.eos_token_id
    more = [] if listed is None else [listed] if isinstance(listed, int) else list(listed)
    return sorted({*subject.renderer.stop_ids, *more})


def generate(
    subject: Subject,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    *,
    label: str = "generating",
) -> list[list[list[int]]]:
    """Continuations of tokenised prompts, ``[prompt][sample][pos]``, without the ids that end them.

    Prompts run sorted by length, padded on the left, as many at once as the budget of positions
    allows; finished rows leave the batch. An answer does not depend on its batch beyond rounding:
    a sampled one is drawn from the seed, its prompt and its own number. When a
    GPU runs out of memory the batch is halved. The model's own generation settings other than its
    end-of-turn tokens (repetition penalty, temperature ...) do not count.

    Args:
        subject: with whatever adapter is active on it.
        prompts: token ids of each rendered prompt.
        decoding: greedy or sampled, and how long.
        label: for the progress bar.

    Raises:
        LoratomyError: out of memory with a single prompt.
    """
    samples = decoding.samples
    wanted = [(i, k) for i in range(len(prompts)) for k in range(samples)]
    wanted.sort(key=lambda item: len(prompts[item[0]]))
    answers: list[list[list[int]]] = [[[] for _ in range(samples)] for _ in prompts]
    lengths = [len(prompts[i]) + decoding.max_new_tokens for i, _ in wanted]
    most, done, stops = len(wanted), 0, stop_ids(subject)
    while done < len(wanted):
        size = min(most, batch_rows(lengths[done:], decoding.batch_tokens))
        picked = wanted[done : done + size]
        rows = None
        try:
            with bare_settings(subject):
                rows = _batch(subject, [(prompts[i], k) for i, k in picked], decoding, stops)
        except torch.cuda.OutOfMemoryError as error:
            if size == 1:
                raise LoratomyError(
                    f"out of GPU memory with one prompt of {len(prompts[picked[0][0]])} tokens; "
                    "lower --max-new-tokens or use a smaller dtype"
                ) from error
        if rows is None:  # outside of the handler, whose traceback still holds the batch
            torch.cuda.empty_cache()
            most = size // 2
            continue
        for (i, k), row in zip(picked, rows, strict=True):
            answers[i][k] = row
        done += size
        report(label, done, len(wanted))
    return answers


@contextmanager
def bare_settings(subject: Subject) -> Iterator[None]:
    """The model without generation settings of its own, which `generate` would fill in."""
    from transformers import GenerationConfig

    own = subject.model.generation_config
    subject.model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        subject.model.generation_config = own


def greedy(steps: int, pad: int, stops: list[int] | None) -> Any:
    """A `GenerationConfig` that takes the likeliest token and nothing else, for `bare_settings`.

    Args:
        steps: most new tokens.
        pad: id that follows in rows that have ended.
        stops: ids that end a row; None: every row runs for all steps.
    """
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=steps,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=pad,
        eos_token_id=stops,
        return_dict_in_generate=True,
        use_cache=True,
    )


def _batch(
    subject: Subject, requests: list[tuple[list[int], int]], decoding: Decoding, stops: list[int]
) -> list[list[int]]:
    """One batch of (prompt, sample) to its end; finished rows leave it after every chunk."""
    prompts = [prompt for prompt, _ in requests]
    width = max(len(p) for p in prompts)
    pad, device = subject.renderer.pad_id, subject.device
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    noise = _Noise(requests, decoding) if decoding.temperature > 0 else None
    answers: list[list[int]] = [[] for _ in prompts]
    alive, left, cache = list(range(len(prompts))), decoding.max_new_tokens, None
    while alive and left > 0:
        steps = min(CHUNK, left)
        ids, cache = _advance(subject, ids, mask, cache, steps, noise, (pad, stops))
        new = ids[:, mask.shape[1] :]
        going = []
        for place, (row, tokens) in enumerate(zip(alive, new.tolist(), strict=True)):
            end = next((k for k, token in enumerate(tokens) if token in stops), None)
            answers[row] += tokens[:end]
            if end is None and not _ended(subject.renderer, answers[row]):
                going.append(place)
        left -= steps
        if not going:
            break
        mask = torch.nn.functional.pad(mask, (0, new.shape[1]), value=1)
        if len(going) < len(alive):
            kept = torch.tensor(going, device=device)
            ids, mask = ids[kept], mask[kept]
            cache.batch_select_indices(kept)
            alive = [alive[place] for place in going]
            if noise:
                noise.keep(going)
    return answers


def _ended(renderer: Renderer, answer: list[int]) -> bool:
    """Whether an answer holds the text that ends it where no token does; cuts it there."""
    stop, decode = renderer.stop_text, renderer.tokenizer.decode
    if not stop or stop not in str(decode(answer)):
        return False
    at = str(decode(answer)).index(stop)
    while answer and len(str(decode(answer[:-1]))) >= at:
        answer.pop()
    return True


def _advance(
    subject: Subject,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cache: Any,
    steps: int,
    noise: "_Noise | None",
    ends: tuple[int, list[int]],
) -> tuple[torch.Tensor, Any]:
    """The sequences after up to `steps` more tokens, and the cache that goes with them."""
    from transformers import LogitsProcessorList

    pad, stops = ends
    config = greedy(steps, pad, stops)
    model: Any = subject.model
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=config,
            logits_processor=LogitsProcessorList([noise] if noise else []),
        )
    return out.sequences, out.past_key_values


class _Noise:
    """Sampling as an argmax: Gumbel noise of each row's own generator on the warped logits.

    The argmax of ``logits / temperature + Gumbel`` is a draw from their softmax (Maddison et al.
    2014, arXiv 1411.0030); with a generator for each row the draw is the same in every batch.
    """

    def __init__(self, requests: Sequence[tuple[list[int], int]], decoding: Decoding) -> None:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self.warpers: list[Any] = [TemperatureLogitsWarper(decoding.temperature)]
        if decoding.top_p < 1:
            self.warpers.append(TopPLogitsWarper(decoding.top_p))
        self.generators = list(_generators(requests, decoding.seed))

    def keep(self, places: Sequence[int]) -> None:
        """Drop the rows that have left the batch."""
        self.generators = [self.generators[place] for place in places]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float()
        for warp in self.warpers:
            scores = warp(input_ids, scores)
        size = scores.shape[-1]
        uniform = torch.stack([torch.rand(size, generator=g) for g in self.generators])
        gumbel = -(-uniform.clamp_min(1e-20).log()).log()
        return scores + gumbel.to(scores.device)


def _generators(requests: Sequence[tuple[list[int], int]], seed: int) -> Iterator[torch.Generator]:
    for prompt, sample in requests:
        number = random.Random(f"{seed} {prompt} {sample}").getrandbits(63)
        yield torch.Generator().manual_seed(number)
