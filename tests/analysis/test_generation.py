"""Batched greedy answers against a loop of one token at a time without padding."""

import pytest
import torch
from loratomy.analysis.generation import generate, stop_ids
from loratomy.core.errors import LoratomyError

from .. import tiny


def loop(on, prompt: list[int], stops: list[int], most: int) -> list[int]:
    """The likeliest token again and again, no cache, no padding."""
    ids = list(prompt)
    while len(ids) - len(prompt) < most:
        token = int(tiny.logits(on, torch.tensor([ids]))[0, -1].argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def prompts_of(n: int = 16) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 14, (n,), generator=draw).tolist()
    return [torch.randint(7, 40, (length,), generator=draw).tolist() for length in lengths]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral", "mistral"])
def test_answers_are_those_of_the_plain_loop_in_any_batch(model_type):
    on, prompts = tiny.subject(model_type), prompts_of()
    with on.attached({"x": tiny.adapter(on)}):
        # A stop token that the model does say, so that rows end at different places.
        said = loop(on, prompts[0], [2], 6)
        on.model.generation_config.eos_token_id = [2, said[3]]
        stops = stop_ids(on)
        want = [loop(on, prompt, stops, 10) for prompt in prompts]
        for size in (1, 5, 16):
            assert generate(on, prompts, max_new_tokens=10, batch_size=size) == want
    assert len({len(answer) for answer in want}) > 1
    assert stops == sorted({2, said[3]})


def test_stop_ids_join_the_tokenizers_and_the_models():
    on = tiny.subject()
    for listed, want in ((None, [2]), (5, [2, 5]), ([7, 2, 3], [2, 3, 7])):
        on.model.generation_config.eos_token_id = listed
        assert stop_ids(on) == want


def test_answers_keep_the_order_of_their_prompts_and_may_be_empty():
    on = tiny.subject()
    torch.nn.init.zeros_(on.model.lm_head.weight)  # all logits equal: the pad token 0 wins
    on.model.generation_config.eos_token_id = [0]
    assert generate(on, prompts_of(3), max_new_tokens=4, batch_size=2) == [[], [], []]


def test_out_of_memory_halves_the_batch_until_one_prompt_is_too_much(monkeypatch):
    from loratomy.analysis import generation

    on, prompts, real, sizes = tiny.subject(), prompts_of(5), generation._batch, []

    def tight(subject, batch, *rest):
        sizes.append(len(batch))
        if len(batch) > room:
            raise torch.cuda.OutOfMemoryError
        return real(subject, batch, *rest)

    want = generate(on, prompts, max_new_tokens=3, batch_size=5)
    monkeypatch.setattr(generation, "_batch", tight)
    room = 1
    assert generate(on, prompts, max_new_tokens=3, batch_size=4) == want
    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    room = 0
    with pytest.raises(LoratomyError, match="out of GPU memory with one prompt of"):
        generate(on, prompts, max_new_tokens=3, batch_size=4)
