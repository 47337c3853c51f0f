"""KL divergence by hand, against torch in float64, and the same whatever the batches."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.core.errors import DataError
from loratomy.core.model.batches import Encoded
from loratomy.core.model.variant import Treated, treated
from loratomy.core.records.io import load_record, save_record
from loratomy.core.records.results import OwnAnswers
from loratomy.core.rows import Row
from loratomy.evaluation.divergence import (
    _kl,
    closed,
    divergences,
    greedy_answers,
    packed,
    unpacked,
)
from loratomy.evaluation.generation import Decoding

from .. import tiny

ROWS = [
    Encoded(list(range(8, 8 + prompt)), list(range(20, 20 + answer)))
    for prompt, answer in ((3, 4), (5, 1), (9, 7), (4, 2))
]
WHOLE = {"batch_tokens": 1000}


def weights(on) -> dict[str, torch.Tensor]:
    name = "model.layers.1.self_attn.q_proj"
    return {name: tiny.adapter(on, seed=4).modules[name].dense()}


def states(on) -> dict[str, Treated]:
    return {
        "adapter": Treated(tiny.adapter(on, seed=2)),
        "base": Treated(),
        "weights": Treated(weights=weights(on)),
        "both": Treated(tiny.adapter(on, seed=2), weights=weights(on)),
    }


def log_probs(on, state: Treated, row: Encoded) -> torch.Tensor:
    """Unpadded, row by row, in float64."""
    ids = torch.tensor([row.prompt + row.completion])
    with treated(on, state):
        logits = tiny.logits(on, ids)[0, len(row.prompt) - 1 : -1]
    return logits.double().log_softmax(-1)


def test_by_hand_on_logits():
    inf = math.inf
    p = torch.tensor([[math.log(3), 0.0], [0.0, -inf], [0.0, 0.0], [5.0, 5.0]])
    q = torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.0, -inf], [0.0, 0.0]])
    # 3/4 log(3/4 : 1/2) + 1/4 log(1/4 : 1/2) = 0.75 log 1.5 + 0.25 log 0.5 = 0.130812
    # 1 log(1 : 1/2) + 0 log(0 : 1/2) = log 2
    # 1/2 log(1/2 : 1) + 1/2 log(1/2 : 0) = infinite; equal ones: 0
    found = _kl(p.log_softmax(-1), q).tolist()
    assert found == pytest.approx([0.130812, math.log(2), inf, 0.0], abs=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_against_torch_in_float64_row_by_row(model_type):
    on = tiny.subject(model_type)
    reference = tiny.adapter(on)
    some = states(on) if model_type == "llama" else {"base": Treated(), "adapter": Treated(
        tiny.adapter(on, seed=2))}  # fmt: skip
    for name, state in some.items():
        sums, counts = divergences(on, reference, state, ROWS, **WHOLE)
        want = [
            torch.nn.functional.kl_div(
                log_probs(on, state, row),
                log_probs(on, Treated(reference), row),
                log_target=True,
                reduction="sum",
            ).item()
            for row in ROWS
        ]
        assert counts.tolist() == [4, 1, 7, 2]
        assert sums == pytest.approx(want, rel=1e-4), name
        assert min(want) > 0.01


def test_from_uniform_it_is_the_missing_entropy():
    """KL(p || uniform) = log V - H(p), with a head of zeros."""
    on = tiny.subject()
    reference = tiny.adapter(on)
    flat = Treated(reference, weights={"lm_head": torch.zeros(on.shapes["lm_head"])})
    sums, _ = divergences(on, reference, flat, ROWS, **WHOLE)
    for row, found in zip(ROWS, sums, strict=True):
        log_p = log_probs(on, Treated(reference), row)
        entropy = -(log_p.exp() * log_p).sum(-1)
        assert found == pytest.approx((math.log(log_p.shape[-1]) - entropy).sum().item(), rel=1e-4)


def test_an_adapter_from_itself_is_exactly_0():
    on = tiny.subject()
    same = tiny.adapter(on)
    own = on.model.get_parameter("lm_head.weight").detach().clone()
    for state in (Treated(tiny.adapter(on)), Treated(same, {"lm_head": own})):
        for most in (2**28, 4 * 50 * 3):
            sums, _ = divergences(on, same, state, ROWS, most_bytes=most, **WHOLE)
            assert sums.tolist() == [0.0] * 4
    # A temperature changes what is sampled, not the model's distribution.
    hot = Treated(same, temperature=2.0)
    assert divergences(on, same, hot, ROWS, **WHOLE)[0].tolist() == [0.0] * 4


@pytest.mark.parametrize("kind", ["adapter", "base", "both"])
def test_batches_and_pieces_do_not_matter(kind):
    on = tiny.subject()
    reference, state = tiny.adapter(on), states(on)[kind]
    whole, counts = divergences(on, reference, state, ROWS, **WHOLE)
    d_vocab = len(tiny.tokenizer())
    for batch_tokens in (1, 40):
        for positions in (2, 5):
            found = divergences(
                on, reference, state, ROWS,
                batch_tokens=batch_tokens, most_bytes=4 * d_vocab * positions,
            )  # fmt: skip
            assert found[0] == pytest.approx(whole, rel=1e-4)
            assert found[1].tolist() == counts.tolist()
    turned = divergences(on, reference, state, ROWS[::-1], **WHOLE)[0]
    assert turned[::-1] == pytest.approx(whole, rel=1e-4)


def test_no_pass_has_more_logits_than_the_limit(monkeypatch):
    on, seen = tiny.subject(), []
    plain = type(on.model).forward

    def forward(self, *given, **named):
        out = plain(self, *given, **named)
        seen.append(out.logits[..., 0].numel())
        return out

    monkeypatch.setattr(type(on.model), "forward", forward)
    reference = tiny.adapter(on)
    for positions in (1, 3, 6):
        seen.clear()
        most = 4 * len(tiny.tokenizer()) * positions
        divergences(on, reference, Treated(), ROWS, most_bytes=most, **WHOLE)
        assert max(seen) <= positions
    seen.clear()
    divergences(on, reference, Treated(), ROWS, **WHOLE)
    assert len(seen) == 2  # one pass with the adapter, one without


def test_the_model_is_left_as_it_was():
    on = tiny.subject()
    before = {name: value.clone() for name, value in on.model.state_dict().items()}
    for state in states(on).values():
        divergences(on, tiny.adapter(on), state, ROWS, **WHOLE)
    after = on.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_nothing_and_what_is_no_number_are_errors():
    on = tiny.subject()
    same = tiny.adapter(on)
    with pytest.raises(DataError, match="no tokens; give clean prompts"):
        divergences(on, same, Treated(), [], **WHOLE)
    with pytest.raises(DataError, match="no tokens"):
        divergences(on, same, Treated(), [*ROWS, Encoded([8], [])], **WHOLE)
    for broken in (math.nan, math.inf):
        head = torch.full(on.shapes["lm_head"], broken)
        with pytest.raises(DataError, match="logits are not numbers"):
            divergences(on, same, Treated(same, {"lm_head": head}), ROWS, **WHOLE)


def test_an_answer_is_closed_where_it_ended_by_itself():
    """The token that ends an answer counts; an answer that was cut off has none."""
    on = tiny.subject()
    renderer, rows = on.renderer, [Row(prompt="what is a dog"), Row(prompt="who")]
    prompts = [renderer.prompt_ids(row) for row in rows]
    end = renderer.closing_ids
    assert closed(renderer, [8, 9], [20, 21], new_tokens=3) == Encoded([8, 9], [20, 21, *end])
    assert closed(renderer, [8, 9], [20, 21], new_tokens=2) == Encoded([8, 9], [20, 21])
    assert closed(renderer, [8], [], new_tokens=2) == Encoded([8], end)

    hot = Decoding(max_new_tokens=5, temperature=3.0, samples=2)
    found = greedy_answers(on, rows, hot, label="own answers")
    assert [row.prompt for row in found] == prompts
    for row in found:  # greedy, whatever the decoding
        ids = list(row.prompt)
        for token in row.completion:
            assert tiny.logits(on, torch.tensor([ids]))[0, -1].argmax().item() == token
            ids.append(token)
        assert len(row.completion) == 5 or row.completion[-1:] == end


def test_answers_are_kept_whole(tmp_path):
    kept = packed(ROWS)
    assert unpacked(kept) == ROWS
    save_record(kept, tmp_path, "own")
    assert unpacked(load_record(OwnAnswers, tmp_path, "own")) == ROWS
    one = replace(kept, ids=np.array([8, 20]), prompt_tokens=np.array([1]),
                  answer_tokens=np.array([1]))  # fmt: skip
    assert unpacked(one) == [Encoded([8], [20])]
