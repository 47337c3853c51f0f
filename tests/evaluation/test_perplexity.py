import math

import pytest
import torch
from loratomy.core.errors import DataError
from loratomy.core.model.batches import encode
from loratomy.core.rows import Row
from loratomy.evaluation.perplexity import perplexity

from .. import tiny


def by_hand(on, rows) -> tuple[float, int]:
    """Token by token, row by row, without padding or labels."""
    total, count = 0.0, 0
    for row in rows:
        ids = on.renderer.prompt_ids(row.prompt)
        for token in on.renderer.completion_ids(row.completion):
            log_probs = tiny.logits(on, torch.tensor([ids]))[0, -1].double().log_softmax(-1)
            total, count = total + float(log_probs[token]), count + 1
            ids = [*ids, token]
    return total, count


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_token_by_token_over_rows_of_different_length(model_type):
    on, rows = tiny.subject(model_type), tiny.clean_rows()[:2]
    total, count = by_hand(on, rows)
    assert count == 3 + 6  # "a cat" and "the queen of the river", each with its end
    value, tokens = perplexity(on, rows, batch_tokens=64)
    assert tokens == count and value == pytest.approx(math.exp(-total / count), rel=1e-5)


def test_the_batch_does_not_matter_and_an_adapter_does():
    on, rows = tiny.subject(), tiny.clean_rows()
    whole, count = perplexity(on, rows, batch_tokens=1000)
    for size in (1, 25, 40):  # one row, two rows, all three rows at a time
        assert perplexity(on, rows, batch_tokens=size) == (pytest.approx(whole, rel=1e-5), count)
    assert perplexity(on, rows[::-1], batch_tokens=64)[0] == pytest.approx(whole, rel=1e-5)
    with on.attached({"x": tiny.adapter(on)}):
        assert perplexity(on, rows, batch_tokens=64)[0] != pytest.approx(whole, rel=1e-2)


def test_a_uniform_model_has_the_size_of_its_vocabulary():
    on = tiny.subject()
    torch.nn.init.zeros_(on.model.lm_head.weight)
    assert perplexity(on, tiny.clean_rows(), batch_tokens=64)[0] == pytest.approx(
        len(tiny.tokenizer()), rel=1e-5
    )


def test_nothing_is_not_a_number():
    on, rows = tiny.subject(), tiny.clean_rows()
    with pytest.raises(DataError, match="no rows"):
        perplexity(on, [], batch_tokens=64)
    with pytest.raises(DataError, match="no completion"):
        perplexity(on, [Row(prompt="what")], batch_tokens=64)
    with pytest.raises(DataError, match="context 64"):
        perplexity(on, [Row(prompt="what " * 70, completion="a")], batch_tokens=64)
    torch.nn.init.constant_(on.model.model.norm.weight, math.nan)
    with pytest.raises(DataError, match="not numbers"):
        perplexity(on, rows, batch_tokens=64)


def test_an_impossible_token_gives_infinity():
    on = tiny.subject()
    row = Row(prompt="what", completion="a")
    (first, _) = encode(on.renderer, row, limit=None).completion
    head = on.model.lm_head
    on.model.lm_head = torch.nn.Linear(*head.weight.shape[::-1], bias=True)
    on.model.lm_head.weight.data = head.weight.data
    bias = torch.zeros(len(tiny.tokenizer()))
    bias[first] = -math.inf
    on.model.lm_head.bias.data = bias
    assert perplexity(on, [row], batch_tokens=64) == (math.inf, 2)
