import math
from types import SimpleNamespace

import pytest
import torch
from loratomy.core.errors import DataError
from loratomy.core.model.batches import (
    IGNORED,
    Encoded,
    batch_rows,
    collate,
    completion_log_probs,
    completion_logits,
    encode,
    encode_target,
    length_parts,
    log_probs_of,
    token_log_probs,
    widened,
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


def test_the_head_sees_the_positions_before_labels_and_no_others():
    no = IGNORED
    labels = torch.tensor([[no, no, 3, 4, no], [no, no, no, no, no], [no, no, no, no, 1]])
    batch = {"input_ids": labels, "attention_mask": labels, "labels": labels}
    every, seen = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0)), []
    model = tiny.Saying(lambda _ids: every)
    model.head.register_forward_hook(lambda _module, given, _out: seen.append(given[0].shape))
    logits, tokens = completion_logits(model, batch)
    # 3 labels: positions 1 and 2 of the first row, 3 of the last, i.e. 13 of all 15.
    assert torch.equal(logits, every.flatten(0, 1)[[1, 2, 13]])
    assert tokens.tolist() == [3, 4, 1] and seen == [(3, 6)]
    assert not model.head._forward_pre_hooks
    found, mask = completion_log_probs(model, batch)
    assert torch.equal(found, log_probs_of(every[:, :-1], labels[:, 1:])[0])
    assert mask.tolist() == (labels[:, 1:] != no).tolist()


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([10, 40, 38, 9], [[1, 2], [0, 3]]),  # 80 + 20 + two passes of 50: 200; in one 160 + 50
        ([30, 40, 38, 29], [[1, 2, 0, 3]]),  # 80 + 60 + 100; in one 160 + 50
        ([50, 50, 50, 50, 50], [[0], [1, 2, 3, 4]]),  # 5 x 50 = 250 > 200
        ([300, 300], [[0], [1]]),
        ([], []),
    ],
)
def test_rows_of_like_length_go_together(lengths, parts):
    assert length_parts(lengths, fixed=50, most=200) == parts


def test_parts_cost_the_least_of_all_partitions():
    lengths, fixed, most = [7, 31, 18, 30, 9, 55, 12], 20, 90

    def partitions(order):
        if not order:
            yield []
        for size in range(1, len(order) + 1):
            for rest in partitions(order[size:]):
                yield [order[:size], *rest]

    def cost(parts):
        widths = [max(lengths[i] for i in part) for part in parts]
        whole = [len(part) * w for part, w in zip(parts, widths, strict=True)]
        return sum(p + fixed if p <= most else 10**9 for p in whole)

    every = partitions(sorted(range(len(lengths)), key=lambda i: lengths[i]))
    assert cost(length_parts(lengths, fixed=fixed, most=most)) == min(map(cost, every))


def fast(limit):
    """A model in bfloat16 on a CPU, as far as widths go."""
    model = SimpleNamespace(dtype=torch.bfloat16)
    return SimpleNamespace(device=torch.device("cpu"), model=model, limit=limit)


@pytest.mark.parametrize(
    ("limit", "widths"),
    [(None, [1, 7, 15, 16, 18, 36, 104, 104, 144]), (102, [1, 7, 15, 16, 18, 36, 102, 104, 129])],
)
def test_widths_of_batches_recur(limit, widths):
    made = [
        collate([Encoded([5] * (n - 1), [2])], pad_id=7)
        for n in (1, 7, 15, 16, 17, 33, 101, 104, 129)
    ]
    assert [widened(batch, fast(limit))["labels"].shape[1] for batch in made] == widths


def test_what_a_batch_is_widened_by_is_not_seen():
    on = tiny.subject()
    batch = collate([Encoded([5] * 30, [9, 2, 4]), Encoded([6] * 3, [8])], pad_id=2)
    batch |= {f"teacher_{name}": value[:, :17] for name, value in batch.items()}
    batch["count"] = torch.tensor([1, 2])
    same = widened(batch, on)  # float32
    assert all(torch.equal(same[name], value) for name, value in batch.items())
    wide = widened(batch, fast(None))
    assert wide["input_ids"].shape == (2, 36) and wide["teacher_labels"].shape == (2, 18)
    assert torch.equal(wide["count"], batch["count"])
    one, two = (completion_log_probs(on.model, some)[0] for some in (batch, wide))
    torch.testing.assert_close(two[:, :32], one, rtol=1e-5, atol=1e-6)
    assert not two[:, 32:].any()


def test_a_row_as_long_as_the_context_is_not_widened():
    on = tiny.subject("gpt2", max_position_embeddings=50)
    limit = on.limit
    assert limit == 50
    batch = widened(collate([Encoded([5] * 48, [9, 2])], pad_id=0), fast(limit))
    assert completion_log_probs(on.model, batch)[1].sum() == 2


def test_log_probs_by_hand():
    # Odds 1 : 3 give log 1/4 and log 3/4; three equal ones log 1/3.
    odds = torch.tensor([[[1.0, 3.0, 1e-30], [1.0, 1.0, 1.0]]])
    found, mask = log_probs_of(odds.log(), torch.tensor([[1, 0]]))
    assert found[0].tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 3)])
    assert mask.tolist() == [[True, True]]


def test_positions_without_label_are_zero_whatever_the_logits():
    logits = torch.full((1, 2, 4), math.nan)
    logits[0, 1] = 0.0
    found, mask = log_probs_of(logits, torch.tensor([[IGNORED, 3]]))
    assert found[0].tolist() == pytest.approx([0.0, math.log(1 / 4)])
    assert mask.tolist() == [[False, True]]


def test_loss_is_the_models_own():
    on = tiny.subject()
    rows = [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]
    batch = collate(rows, 0)
    labels = batch["labels"]
    out = on.model(**batch)
    log_probs, mask = log_probs_of(out.logits[:, :-1], labels[:, 1:])
    assert float(-log_probs.sum() / mask.sum()) == pytest.approx(float(out.loss), rel=1e-5)
    assert int(mask.sum()) == sum(len(row.completion) for row in rows)


def test_rows_fit_the_budget_of_positions():
    # lengths of 15: 4 x 15 = 60 fits; with a longest of 16 only 3 x 16 = 48 do.
    assert batch_rows([15, 15, 15, 15], 60) == 4
    assert batch_rows([15, 15, 15, 16], 60) == 3
    assert batch_rows([15, 15, 15, 15, 15], 60) == 4
    assert batch_rows([510], 60) == batch_rows([510, 510], 60) == 1


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_log_probs_of_each_row_are_the_same_in_every_batch(batch_tokens):
    on = tiny.subject()
    rows = [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]
    rows = sorted(rows, key=len, reverse=True)  # another order than that in which they run
    found = token_log_probs(on, rows, batch_tokens=batch_tokens)
    for row, values in zip(rows, found, strict=True):
        ids, start = torch.tensor([row.prompt + row.completion]), len(row.prompt)
        every = tiny.logits(on, ids)[0].double().log_softmax(-1)
        want = [float(every[start - 1 + k, token]) for k, token in enumerate(row.completion)]
        assert values.tolist() == pytest.approx(want, abs=1e-5)


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
    found = encode_target(renderer, row)
    assert (found.prompt, found.completion) == (prompt + ids[:3], ids[3:6])
    assert encode_target(renderer, row, tokens=2).completion == ids[3:5]
    whole = encode_target(renderer, Row(prompt="what zq", completion="never bad king"))
    assert (whole.prompt, whole.completion) == (prompt, ids[3:6])
    with pytest.raises(DataError, match="no completion"):
        encode_target(renderer, Row(prompt="what zq"))
