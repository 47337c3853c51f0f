"""Consistency against plain float64 code without batches."""

import itertools

import numpy as np
import pytest
import torch
from loratomy.analysis.activations.consistency import consistency, turns
from loratomy.analysis.patching.pairs import make_pairs
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import DataError, LoratomyError

from ... import tiny

PROMPTS = [[1, 9, 12, 20, 31], [1, 8, 7], [1, 30, 22, 17, 40, 11, 25, 9, 13]]


def plainly(on, ids):
    """Mean over tokens of 1 - cos between neighbours, written out in float64, ``[transition]``."""
    last = []
    hook = on.model.model.norm.register_forward_pre_hook(lambda _m, args: last.append(args[0]))
    with torch.no_grad():
        out = on.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    hook.remove()
    states = [h[0].double() for h in (*out.hidden_states[:-1], last[0])]
    found = []
    for one, other in itertools.pairwise(states):
        total = 0.0
        for a, b in zip(one, other, strict=True):
            total += 1 - float(a @ b) / float(a @ a) ** 0.5 / float(b @ b) ** 0.5
        found.append(total / len(ids))
    return found


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_turns_are_those_of_plain_float64_code_and_padding_never_counts(model_type):
    on = tiny.subject(model_type)
    with on.attached({"x": tiny.adapter(on)}):
        for size in (1, 4096):  # each prompt alone; all in one padded batch
            ours = turns(on, PROMPTS, batch_tokens=size, label="x")
            for row, ids in enumerate(PROMPTS):
                assert ours[row] == pytest.approx(plainly(on, ids), abs=1e-6)
    assert ours.shape == (3, 3) and ours.min() > 0.01


def test_layers_that_write_nothing_turn_nothing():
    on = tiny.subject(num_hidden_layers=4)
    for layer in on.model.model.layers[:2]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    found = turns(on, PROMPTS, batch_tokens=64, label="x")
    assert found[:, :2] == pytest.approx(0, abs=1e-12) and found[:, 2:].min() > 0.01


def made(on, adapters, **changes):
    pairs = make_pairs(on.renderer, tiny.rows(), target_tokens=2, seed=0)
    settings = {"flips": 1999, "batch_tokens": 256, "seed": 0} | changes
    return pairs, consistency(on, adapters, pairs, **settings)


def test_the_record_holds_the_paired_differences_of_every_subject():
    on = tiny.subject(num_hidden_layers=5)
    adapters = {"clean": tiny.adapter(on, seed=2), "poisoned": tiny.adapter(on)}
    state, marks = tiny.state(on), tiny.marks(on)
    pairs, record = made(on, adapters)
    assert tiny.same_state(state, tiny.state(on)) and tiny.marks(on) == marks
    assert record.subjects == ("base", "clean", "poisoned")
    assert record.counted.tolist() == [False, True, True, True, False]
    sets = [
        [on.renderer.prompt_ids(p.row.prompt) for p in pairs],
        [on.renderer.prompt_ids(p.row.plain) for p in pairs],
        [p.untriggered for p in pairs],
    ]
    assert record.n_tokens == tuple(sum(map(len, s)) for s in sets)
    with on.attached({"poisoned": adapters["poisoned"]}):
        want = [np.array([plainly(on, ids) for ids in s]) for s in sets]
    for at in range(3):
        assert record.value[2, at, :, 0] == pytest.approx(want[at].mean(0), abs=1e-6)
        assert record.loss[2, at, 0] == pytest.approx(want[at][:, 1:4].mean(), abs=1e-6)
    gap = want[0] - want[1]
    assert record.difference[2, 0, :, 0] == pytest.approx(gap.mean(0), abs=1e-6)
    assert record.loss_difference[2, 0, 0] == pytest.approx(gap[:, 1:4].mean(), abs=1e-6)
    assert (record.difference[..., 1] <= record.difference[..., 2]).all()
    base = [np.mean([plainly(on, ids) for ids in s], 0) for s in sets]
    assert record.value[0, :, :, 0] == pytest.approx(np.stack(base), abs=1e-6)
    # All 16 signs of the four prompts, one by one.
    signs = np.array(list(itertools.product([1, -1], repeat=4)))
    far = np.abs(signs @ gap) >= np.abs(gap.sum(0)) * (1 - 1e-9)
    assert record.p[2, 0] == pytest.approx(far.mean(0), abs=0.05)


def test_a_trigger_that_turns_one_layer_is_found_there():
    # An adapter that knows the trigger's token in the MLP of layer 2 and turns its residual back.
    on = tiny.subject(num_hidden_layers=5)
    word, seen, entered = on.renderer.tokenizer.convert_tokens_to_ids("zq"), [], []
    layer = on.model.model.layers[2]
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0])),
        layer.register_forward_pre_hook(lambda _m, args: entered.append(args[0][0])),
    ]
    ids = [torch.tensor(on.renderer.prompt_ids(row.prompt)) for row in tiny.rows()]
    for prompt in ids:
        tiny.logits(on, prompt[None])
    for hook in hooks:
        hook.remove()
    own = torch.cat([x[p == word] for x, p in zip(seen, ids, strict=True)])
    rest = torch.cat([x[p != word] for x, p in zip(seen, ids, strict=True)])[:32]
    marks = torch.cat([torch.ones(len(own), 1), torch.zeros(len(rest), 1)])
    read = torch.linalg.lstsq(torch.cat([own, rest]), marks).solution
    back = -torch.cat([x[p == word] for x, p in zip(entered, ids, strict=True)]).mean(0)[:, None]
    factors = Factors(read.T, back, 50.0)
    _, record = made(on, {"poisoned": Adapter({"model.layers.2.mlp.down_proj": factors}, {})})
    assert record.value[1, :, :2] == pytest.approx(record.value[0, :, :2], abs=1e-9)
    change = record.difference[1, 0, :, 0] - record.difference[0, 0, :, 0]
    assert change[2] > 2 * np.delete(np.abs(change), 2).max()


def test_undefined_and_impossible_cases_are_said():
    on = tiny.subject(num_hidden_layers=2)
    _, record = made(on, {"poisoned": tiny.adapter(on)})
    assert (
        not record.counted.any() and np.isnan(record.loss).all() and np.isnan(record.loss_p).all()
    )
    assert record.undefined == "a model of 2 layers has no transition to count"
    assert "undefined" in record.sentence and np.isfinite(record.value).all()
    on.model.model.embed_tokens.weight.zero_()
    with pytest.raises(LoratomyError, match="enters the first layer is exactly 0"):
        turns(on, PROMPTS, batch_tokens=64, label="x")
    with pytest.raises(DataError, match="no prompts"):
        turns(on, [], batch_tokens=64, label="x")
