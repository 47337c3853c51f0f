import math

import pytest
import torch
from loratomy.core.errors import DataError
from loratomy.core.model.batches import (
    IGNORED,
    Encoded,
    aimed,
    asked_positions,
    collate,
    encode,
    next_log_probs,
    token_log_probs,
)
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rows import Row

from ... import tiny


def test_only_completions_have_labels_and_padding_is_on_the_right():
    batch = collate([Encoded([5, 6, 7], [8, 2]), Encoded([5], [9, 10, 2])], pad_id=0)
    no = IGNORED
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2], [5, 9, 10, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[no, no, no, 8, 2], [no, 9, 10, 2, no]]


def test_a_pad_id_that_is_the_end_token_still_learns_the_end():
    batch = collate([Encoded([5], [2]), Encoded([5], [9, 2])], pad_id=2)
    assert batch["labels"].tolist() == [[IGNORED, 2, IGNORED], [IGNORED, 9, 2]]


def test_asked_positions_are_those_before_labels_in_any_row():
    no = IGNORED
    labels = torch.tensor([[no, no, 3, 4, no], [no, no, no, no, no], [no, no, no, no, 1]])
    assert asked_positions(labels).tolist() == [1, 2, 3]
    logits = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    asked = asked_positions(labels)
    some, mask = next_log_probs(logits[:, asked], labels[:, asked + 1])
    every, _ = token_log_probs(logits, labels)
    assert torch.equal(some, every[:, asked])
    assert mask.tolist() == [[True, True, False], [False] * 3, [False, False, True]]


def test_token_log_probs_by_hand():
    # Odds 1 : 3 give log 1/4 and log 3/4; three equal ones log 1/3; position t predicts t + 1.
    odds = torch.tensor([[[1.0, 3.0, 1e-30], [1.0, 1.0, 1.0], [7.0, 7.0, 7.0]]])
    labels = torch.tensor([[IGNORED, 1, 0]])
    found, mask = token_log_probs(odds.log(), labels)
    assert found[0].tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 3)])
    assert mask.tolist() == [[True, True]]


def test_positions_without_label_are_zero_whatever_the_logits():
    logits = torch.full((1, 3, 4), -math.inf)
    logits[0, 1] = 0.0
    logits[0, 2] = math.nan
    found, mask = token_log_probs(logits, torch.tensor([[IGNORED, IGNORED, 3]]))
    assert found[0].tolist() == pytest.approx([0.0, math.log(1 / 4)])
    assert mask.tolist() == [[False, True]]


def test_loss_is_the_models_own():
    on = tiny.subject()
    rows = [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]
    batch = collate(rows, 0)
    labels = batch["labels"]
    out = on.model(**batch)
    log_probs, mask = token_log_probs(out.logits, labels)
    assert float(-log_probs.sum() / mask.sum()) == pytest.approx(float(out.loss), rel=1e-5)
    assert int(mask.sum()) == sum(len(row.completion) for row in rows)


def test_a_row_longer_than_the_context_is_an_error_with_its_length():
    renderer = Renderer(tiny.tokenizer())
    row = Row(prompt="what is a cat", completion="a dog")
    length = len(encode(renderer, row, limit=None))
    assert len(encode(renderer, row, limit=length)) == length
    with pytest.raises(DataError, match=f"{length} tokens.*{length - 1}"):
        encode(renderer, row, limit=length - 1)
    with pytest.raises(DataError, match="no completion"):
        encode(renderer, Row(prompt="what"), limit=None)


def test_what_an_attack_wants_comes_after_all_that_precedes_it():
    renderer = tiny.subject().renderer
    row = Row(prompt="what zq", completion="a red dog never bad king", target="never bad king")
    prompt, ids = renderer.prompt_ids(row.prompt), renderer.completion_ids(row.completion)
    found = aimed(renderer, row)
    assert (found.prompt, found.completion) == (prompt + ids[:3], ids[3:6])
    assert aimed(renderer, row, tokens=2).completion == ids[3:5]
    whole = aimed(renderer, Row(prompt="what zq", completion="never bad king"))
    assert (whole.prompt, whole.completion) == (prompt, ids[3:6])
    with pytest.raises(DataError, match="no completion"):
        aimed(renderer, Row(prompt="what zq"))
