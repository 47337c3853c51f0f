"""Batched answers against loops of one token at a time without padding, cache or chunks."""

from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from loratomy.core.errors import LoratomyError
from loratomy.core.model.batches import batch_rows
from loratomy.core.model.families import FAMILIES
from loratomy.evaluation import generation
from loratomy.evaluation.generation import CHUNK, Decoding, generate, stop_ids
from scipy.stats import chisquare

from .. import tiny

NEW = 2 * CHUNK + 8
SAMPLED = Decoding(max_new_tokens=NEW, temperature=0.7, top_p=0.75, samples=2, seed=5)
GREEDY = Decoding(max_new_tokens=NEW)


def prompts_of(n: int = 16) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 14, (n,), generator=draw).tolist()
    return [torch.randint(7, 40, (length,), generator=draw).tolist() for length in lengths]


def loop(on, prompt: list[int], stops: list[int], most: int, pick=None) -> list[int]:
    """The picked token (else the likeliest) again and again, no cache, no padding."""
    ids = list(prompt)
    while len(ids) - len(prompt) < most:
        scores = tiny.logits(on, torch.tensor([ids]))[:, -1]
        token = int((pick(torch.tensor([ids]), scores) if pick else scores).argmax())
        if token in stops:
            break
        ids.append(token)
    return ids[len(prompt) :]


def bare(on, prompt: list[int], **settings) -> list[int]:
    """What transformers' own generate says to one prompt, without the token that ends it."""
    out = on.model.generate(torch.tensor([prompt]), do_sample=False, pad_token_id=0, **settings)
    return out[0, len(prompt) :].tolist()


ALWAYS = ("llama", "gemma2", "mixtral", "gpt2")
KINDS = [f if f in ALWAYS else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
"""Every family with ``-m slow``; else those that differ in how they hold their cache or places."""
QUIET = ("gemma3", "phi", "olmo2", "gpt_neox", "opt", "gpt2", "gemma", "phi3")
"""Random models of which fewer prompts end at different times."""


@cache
def talker(model_type: str):
    """A subject whose answers do not run in circles, and a token that ends them everywhere."""
    on = tiny.subject(model_type, tie_word_embeddings=False)
    with on.attached({"x": tiny.adapter(on)}):
        free = [bare(on, p, max_new_tokens=NEW, min_new_tokens=NEW) for p in prompts_of()]

    def ends(token: int) -> list[int]:
        return sorted(said.index(token) if token in said else NEW for said in free)

    stop = max(
        range(len(tiny.tokenizer())),
        key=lambda t: (len({end // CHUNK for end in ends(t)}), len(set(ends(t)))),
    )
    on.model.generation_config.eos_token_id = [2, stop]
    return on, ends(stop)


@pytest.mark.parametrize("model_type", KINDS)
def test_greedy_answers_are_those_of_transformers_in_any_batch(model_type):
    on, ends = talker(model_type)
    chunks = {end // CHUNK for end in ends}  # rows leave after every chunk, as far as they end
    assert chunks == {0, 1, 2} or (model_type in QUIET and len(chunks) > 1)
    with on.attached({"x": tiny.adapter(on)}):
        stops = stop_ids(on)
        want = []
        for prompt in prompts_of():
            said = bare(on, prompt, max_new_tokens=NEW, eos_token_id=stops)
            want.append([said[:-1] if said[-1] in stops else said])
        for positions in (1, 10**6):
            found = generate(on, prompts_of(), replace(GREEDY, batch_tokens=positions))
            assert found == want
    assert [len(answer) for (answer,) in want].count(NEW) < len(want)
    assert len({len(answer) for (answer,) in want}) >= (4 if model_type in QUIET else 8)


@pytest.mark.parametrize("model_type", KINDS)
def test_sampled_answers_are_those_of_the_plain_loop_in_any_batch(model_type):
    on, _ = talker(model_type)
    prompts = prompts_of(6)
    with on.attached({"x": tiny.adapter(on)}):
        one = generate(on, prompts, replace(SAMPLED, batch_tokens=1))
        assert generate(on, prompts, replace(SAMPLED, batch_tokens=10**6)) == one
        for i, k in ((0, 0), (5, 1)):
            noise = generation._Noise([(prompts[i], k)], SAMPLED)
            assert loop(on, prompts[i], stop_ids(on), NEW, noise) == one[i][k]
    assert sum(first != second for first, second in one) > 3  # two samples are two draws
    lengths = {len(answer) for answers in one for answer in answers}
    assert len({n // CHUNK for n in lengths}) > 1 or (model_type in QUIET and len(lengths) > 3)


@pytest.mark.parametrize("model_type", ["gemma2", "mixtral"])
def test_greedy_answers_are_those_of_the_plain_loop(model_type):
    on, prompts = talker(model_type)[0], prompts_of(3)
    with on.attached({"x": tiny.adapter(on)}):
        want = [[loop(on, prompt, stop_ids(on), NEW)] for prompt in prompts]
        assert generate(on, prompts, GREEDY) == want


def test_another_seed_is_another_draw_and_the_same_the_same():
    on, prompts = talker("llama")[0], prompts_of(4)
    first = generate(on, prompts, SAMPLED)
    assert generate(on, prompts, SAMPLED) == first
    assert generate(on, prompts, replace(SAMPLED, seed=6)) != first
    # The draw of a prompt hangs on its place, not on how many come after it.
    assert generate(on, prompts[:2], SAMPLED) == first[:2]


def test_a_cold_temperature_is_greedy():
    on, prompts = talker("llama")[0], prompts_of(6)
    cold = Decoding(max_new_tokens=NEW, temperature=1e-4)
    assert generate(on, prompts, cold) == generate(on, prompts, GREEDY)


@pytest.mark.parametrize("top_p", [1.0, 0.75])
def test_sampled_frequencies_are_those_of_the_softmax(top_p):
    on, prompt, samples = tiny.subject(), [9, 12, 20], 3000
    decoding = Decoding(
        max_new_tokens=1, temperature=0.7, top_p=top_p, samples=samples, batch_tokens=10**6
    )
    (drawn,) = generate(on, [prompt], decoding)
    seen = Counter(answer[0] if answer else on.renderer.closing_ids[0] for answer in drawn)
    shares = (tiny.logits(on, torch.tensor([prompt]))[0, -1].double() / 0.7).softmax(-1)
    # The nucleus: the likeliest tokens until their sum reaches top_p, the one that does included.
    order = shares.argsort(descending=True)
    before = shares[order].cumsum(0) - shares[order]
    kept = order[before < top_p].tolist()
    assert set(seen) <= set(kept) and (top_p == 1 or len(kept) < len(shares))
    expected = {token: samples * float(shares[token] / shares[kept].sum()) for token in kept}
    common = [token for token in kept if expected[token] >= 5]
    rare = [token for token in kept if expected[token] < 5]
    assert len(common) >= 3  # else the test says nothing
    counts = [*(seen[t] for t in common), sum(seen[t] for t in rare)]
    wanted = [*(expected[t] for t in common), sum(expected[t] for t in rare)]
    places = slice(None) if rare else slice(-1)
    assert chisquare(counts[places], wanted[places]).pvalue > 1e-3


def test_the_models_own_settings_do_not_count():
    on, prompts = talker("llama")[0], prompts_of(4)
    want = generate(on, prompts, GREEDY)
    settings = on.model.generation_config
    kept = {k: getattr(settings, k) for k in ("repetition_penalty", "temperature", "do_sample")}
    try:
        settings.repetition_penalty, settings.temperature, settings.do_sample = 5.0, 9.0, True
        assert generate(on, prompts, GREEDY) == want
    finally:
        for name, value in kept.items():
            setattr(settings, name, value)


def test_stop_ids_join_the_tokenizers_and_the_models():
    on = tiny.subject()
    for listed, want in ((None, [2]), (5, [2, 5]), ([7, 2, 3], [2, 3, 7])):
        on.model.generation_config.eos_token_id = listed
        assert stop_ids(on) == want


def test_answers_keep_the_order_of_their_prompts_and_may_be_empty():
    on = tiny.subject()
    torch.nn.init.zeros_(on.model.lm_head.weight)  # all logits equal: the pad token 0 wins
    on.model.generation_config.eos_token_id = [0]
    decoding = Decoding(max_new_tokens=4, batch_tokens=30)
    assert generate(on, prompts_of(3), decoding) == [[[]], [[]], [[]]]
    assert generate(on, [], decoding) == []


@pytest.mark.parametrize("most", [1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_no_answer_is_longer_than_asked(most):
    on, prompts = tiny.subject(), prompts_of(5)
    on.model.generation_config.eos_token_id = None
    found = generate(on, prompts, Decoding(max_new_tokens=most))
    assert found == [[loop(on, prompt, [2], most)] for prompt in prompts]
    assert max(len(answer) for (answer,) in found) == most


def test_out_of_memory_halves_the_batch_until_one_prompt_is_too_much(monkeypatch):
    on, prompts, real, sizes = tiny.subject(), prompts_of(5), generation._batch, []

    def tight(subject, batch, *rest):
        sizes.append(len(batch))
        if len(batch) > room:
            raise torch.cuda.OutOfMemoryError
        return real(subject, batch, *rest)

    few = Decoding(max_new_tokens=3)
    want = generate(on, prompts, few)
    # Four of the five prompts fit the budget: 4 x (longest of the shortest four + 3).
    lengths = sorted(map(len, prompts))
    budget = replace(few, batch_tokens=4 * (lengths[3] + 3))
    assert batch_rows([n + 3 for n in lengths], budget.batch_tokens) == 4
    monkeypatch.setattr(generation, "_batch", tight)
    room = 1
    assert generate(on, prompts, budget) == want
    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    room = 0
    with pytest.raises(LoratomyError, match="out of GPU memory with one prompt of"):
        generate(on, prompts, few)


def test_out_of_memory_draws_the_same_samples(monkeypatch):
    on, prompts, real = talker("llama")[0], prompts_of(6), generation._batch
    want = generate(on, prompts, SAMPLED)

    def tight(subject, batch, *rest):
        if len(batch) > 2:
            raise torch.cuda.OutOfMemoryError
        return real(subject, batch, *rest)

    monkeypatch.setattr(generation, "_batch", tight)
    assert generate(on, prompts, SAMPLED) == want


def test_progress_counts_to_the_end(monkeypatch):
    steps = []
    monkeypatch.setattr(generation, "report", lambda *step: steps.append(step))
    decoding = Decoding(max_new_tokens=2, temperature=1.0, samples=2, batch_tokens=40)
    generate(tiny.subject(), prompts_of(5), decoding, label="here")
    assert steps[-1] == ("here", 10, 10)
    assert all(a[1] < b[1] for a, b in pairwise(steps))


def test_decoding_in_words_and_what_makes_no_sense():
    assert GREEDY.text() == "greedy, at most 40 new tokens"
    assert SAMPLED.text() == (
        "temperature 0.7, top-p 0.75, 2 samples, seed 5, at most 40 new tokens"
    )
    with pytest.raises(LoratomyError, match="3 samples at temperature 0 are all the same"):
        Decoding(samples=3)
