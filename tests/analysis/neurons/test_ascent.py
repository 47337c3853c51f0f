"""Unlearning as an instrument: one step by another route, where it stops, what it changed."""

import math

import numpy as np
import pytest
import torch
from loratomy.analysis.neurons.ascent import (
    Ascent,
    balanced,
    direction_change,
    row_change,
    row_sums,
    unlearn,
)
from loratomy.core.adapter.algebra import svd
from loratomy.core.adapter.factors import Factors
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.batches import IGNORED, collate, encode

from ... import tiny


def clean(on):
    return [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]


def how(**changes) -> Ascent:
    return Ascent(**({"steps": 3, "stride": 0.02, "collapse": 0.1, "batch_size": 2} | changes))


def climb(on, start, rows=None, **changes):
    return unlearn(on, start, rows or clean(on), name="clean", about="", ascent=how(**changes))


def test_neuron_and_direction_change_by_hand():
    # dW = [[2, 0], [0, 0]] becomes [[1, 1], [3, 3]]; the difference is [[-1, 1], [3, 3]].
    before = Factors(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0], [0.0]]), 1.0)
    after = Factors(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0], [3.0]]), 2.0)
    assert row_sums(before).tolist() == [2, 0]
    assert row_change(before, after).tolist() == [1 + 1, 3 + 3]
    # Its one direction is u = v = (1, 0): strength -1; row (-1, 1), column (-1, 3) without it.
    strength, off = direction_change(before, after)
    assert strength.tolist() == pytest.approx([-1.0])
    assert off.tolist() == pytest.approx([math.sqrt(1 + 9)])


@pytest.mark.parametrize("experts", [(), (3,)])
def test_factor_form_is_the_dense_form(experts):
    generator = torch.Generator().manual_seed(0)

    def factors(scaling, rank):
        a = torch.randn(*experts, rank, 7, generator=generator)
        return Factors(a, torch.randn(*experts, 11, rank, generator=generator), scaling)

    before, after = factors(0.5, 3), factors(2.0, 4)
    change = after.dense().double() - before.dense().double()
    torch.testing.assert_close(row_change(before, after), change.abs().sum(-1), rtol=1e-6, atol=0)
    by_two = row_sums(before, rows=2)
    torch.testing.assert_close(by_two, before.dense().double().abs().sum(-1), rtol=1e-6, atol=0)
    strength, off = direction_change(before, after)
    parts = svd(before)
    for i in np.ndindex(*strength.shape):
        u, v = parts.u.mT[i], parts.vh[i]
        d = change[i[:-1]] if experts else change
        outside_v, outside_u = d.T @ u - v * (u @ d @ v), d @ v - u * (u @ d @ v)
        assert strength[i] == pytest.approx(float(u @ d @ v), rel=1e-5)
        assert off[i] ** 2 == pytest.approx(
            float(outside_v.square().sum() + outside_u.square().sum()), rel=1e-5
        )


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_one_step_is_the_chain_rule_on_dense_weights(family):
    # With G the gradient in W + dW and dW = B A: dB = G A^T, dA = B^T G, stepped to stride |theta|.
    on, twin = tiny.subject(family), tiny.subject(family)
    start = balanced(tiny.adapter(on, size=0.05))
    tiny.in_double(twin)
    weights = {}
    for name, f in start.modules.items():
        weight = twin.model.get_parameter(name if f.fused else f"{name}.weight")
        weight.data += f.dense().double()
        weights[name] = weight.requires_grad_()
    batch = collate(clean(on), 0)
    logits = twin.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    wanted = batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), wanted.flatten(), ignore_index=IGNORED
    )
    loss.backward()
    steps, sizes = {}, []
    for name, f in start.modules.items():
        grad = weights[name].grad
        steps[name] = f.b.double().mT @ grad, grad @ f.a.double().mT
        sizes += [f.a.double().norm(), f.b.double().norm()]
    length = torch.stack([g.norm() for pair in steps.values() for g in pair]).norm()
    scale = 0.02 * torch.stack(sizes).norm() / length

    made, record = climb(on, start, steps=1, collapse=0.0)
    assert record.loss[0] == pytest.approx(loss.item(), rel=1e-5)
    assert record.loss[1] > record.loss[0] and record.steps == 1 and not record.reached
    right = (logits[:, :-1].argmax(-1) == wanted) & (wanted != IGNORED)
    assert record.right[0] == pytest.approx(float(right.sum() / (wanted != IGNORED).sum()))
    for name, (da, db) in steps.items():
        f, g = start.modules[name], made.modules[name]
        # The values are rounded to float32 on the model, the steps are thousands of roundings.
        bound = 2e-3 * float(scale * max(da.abs().max(), db.abs().max())) + 1e-6
        torch.testing.assert_close((g.a - f.a).double(), da * scale, rtol=2e-3, atol=bound)
        torch.testing.assert_close((g.b - f.b).double(), db * scale, rtol=2e-3, atol=bound)


def test_it_stops_by_its_rule_says_when_it_does_not_and_leaves_no_trace():
    on = tiny.subject()
    start = balanced(tiny.adapter(on, size=0.1))
    own = tiny_answers(on, start)
    before, marks = tiny.state(on), tiny.marks(on)
    made, record = climb(on, start, own, steps=60, stride=0.03, collapse=0.5)
    assert record.right[0] == 1 and record.reached and 0 < record.steps < 60
    assert record.right[-1] <= 0.5 < record.right[:-1].min()
    assert record.n_rows == 3 and record.n_tokens == 6 and "50%" in record.rule
    change, size = (
        np.sqrt(sum(float(w.square().sum()) for w in parts))
        for parts in (
            [made.modules[n].dense() - f.dense() for n, f in start.modules.items()],
            [f.dense() for f in start.modules.values()],
        )
    )
    assert record.moved == pytest.approx(change / size, rel=1e-4)
    _, short = climb(on, start, own, steps=1, stride=1e-4, collapse=0.5)
    assert not short.reached and short.steps == short.most == 1
    again, _ = climb(on, start, own, steps=60, stride=0.03, collapse=0.5)
    assert all(torch.equal(again.modules[n].a, f.a) for n, f in made.modules.items())
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks


def tiny_answers(on, start):
    """The three clean prompts with the model's own two next tokens, so that all are right."""
    rows = []
    with on.attached({"x": start}):
        for row in clean(on):
            ids = list(row.prompt)
            for _ in range(2):
                ids.append(int(tiny.logits(on, torch.tensor([ids]))[0, -1].argmax()))
            rows.append(type(row)(ids[:-2], ids[-2:]))
    return rows


def test_the_same_change_in_other_factors_unlearns_the_same():
    on = tiny.subject()
    one = tiny.adapter(on, size=0.1, scaling=2.0)
    mixed = one.with_modules(
        {n: Factors(f.a * 5, f.b / 2.5, f.scaling / 2) for n, f in one.modules.items()}
    )
    made = [climb(on, balanced(a), steps=2, collapse=0.0)[0] for a in (one, mixed)]
    for name, f in made[0].modules.items():
        torch.testing.assert_close(f.dense(), made[1].modules[name].dense(), rtol=1e-3, atol=1e-6)


def test_nothing_to_unlearn_is_no_step():
    on = tiny.subject()
    start = balanced(tiny.adapter(on, size=0.1))
    worst = tiny_answers(on, start)
    with on.attached({"x": start}):
        least = int(tiny.logits(on, torch.tensor([worst[0].prompt]))[0, -1].argmin())
    made, record = climb(on, start, [type(worst[0])(worst[0].prompt, [least])])
    assert record.steps == 0 and not record.reached and record.right.tolist() == [0]
    assert all(torch.equal(made.modules[n].a, f.a) for n, f in start.modules.items())


def test_errors_name_what_is_wrong_and_leave_no_trace():
    on = tiny.subject()
    start = balanced(tiny.adapter(on))
    with pytest.raises(DataError, match="0 rows and no completion tokens"):
        unlearn(on, start, [], name="clean", about="", ascent=how())
    on.model.model.norm.weight.data[0] = torch.nan
    marks = tiny.marks(on)
    with pytest.raises(LoratomyError, match="loss became nan at step 0"):
        climb(on, start)
    assert tiny.marks(on) == marks
