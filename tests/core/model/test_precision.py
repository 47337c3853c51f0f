"""The fast number format: what runs in it, what does not, and that nothing of it stays."""

import pytest
import torch
from loratomy.core.model.batches import collate, completion_log_probs, encode
from loratomy.core.model.precision import fast_dtype, fast_format, number_format

from ... import tiny


@pytest.fixture
def able(monkeypatch):
    """A CPU that multiplies in bfloat16, and a base that is wide enough for it."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    monkeypatch.setattr("loratomy.core.model.precision.WIDTH", 8)


def gradients(on, adapter):
    """Loss and gradients of the factors on some rows, and the types of what the layers see."""
    rows = [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]
    seen = set()
    with on.attached({"x": adapter}, trainable=True), fast_format(on):
        layer = on.layers[0]
        handle = layer.register_forward_pre_hook(lambda _m, given: seen.add(given[0].dtype))
        loss = -completion_log_probs(on.model, collate(rows, 0))[0].mean()
        handle.remove()
        loss.backward()
        found = [p.grad.clone() for p in on.model.parameters() if p.grad is not None]
    return float(loss.detach()), found, seen


def test_the_base_is_fast_the_factors_and_losses_are_not_and_nothing_stays(able):
    on, adapter = tiny.subject(), tiny.adapter(tiny.subject())
    before, marks = tiny.state(on), tiny.marks(on)
    loss, found, seen = gradients(on, adapter)
    assert seen == {torch.bfloat16} and {g.dtype for g in found} == {torch.float32}
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks
    assert not on.model._forward_hooks and not on.model._forward_pre_hooks
    assert number_format(on) == "bfloat16 (factors and losses float32)"
    with pytest.MonkeyPatch.context() as patch:  # the same in float32, within bfloat16's 8 bits
        patch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        assert fast_dtype(on) is None and number_format(on) == "float32"
        exact, wanted, plain = gradients(on, adapter)
    assert plain == {torch.float32} and loss != exact
    assert loss == pytest.approx(exact, rel=0.02)
    one, other = (torch.cat([g.flatten() for g in some]) for some in (found, wanted))
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.99


def test_an_error_in_the_middle_leaves_the_base_as_it_was(able):
    on = tiny.subject()
    before = tiny.state(on)
    with pytest.raises(IndexError), fast_format(on):
        on.model(input_ids=torch.tensor([[10**6]]))
    assert tiny.same_state(before, tiny.state(on))
    assert not torch.is_autocast_enabled("cpu") and not on.model._forward_hooks


def test_blocks_inside_each_other_are_one(able):
    on = tiny.subject()
    before = tiny.state(on)
    with fast_format(on):
        assert fast_dtype(on) is None
        with fast_format(on):
            assert on.model.dtype == torch.bfloat16
        assert on.model.dtype == torch.bfloat16
    assert tiny.same_state(before, tiny.state(on))


def test_the_head_reads_the_last_positions_in_one_piece(able):
    """Of a slice oneDNN copies the head's weight for every prompt: gigabytes in a real model."""
    on, seen = tiny.subject(), []
    head = on.model.get_output_embeddings()
    with fast_format(on):
        handle = head.register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
        on.model(input_ids=tiny.ids(on), logits_to_keep=1)
        handle.remove()
    assert seen[0].shape[:2] == (2, 1) and seen[0].is_contiguous()
    assert not head._forward_pre_hooks
