"""TSBD by hand arithmetic on two neurons, against dense float64 weights, on clean rows alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.analysis.localisation.gates import directions_of
from loratomy.analysis.neurons.ascent import balanced
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import LoratomyError
from loratomy.core.model.batches import collate, encode
from loratomy.core.model.families import FAMILIES
from loratomy.core.model.subject import Subject
from loratomy.core.model.variant import Treated, base_weight, treated
from loratomy.evaluation.perplexity import perplexity
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.calibration import halves
from loratomy.unlearning.trained.neuron_cut import (
    check_replaceable,
    direction_neurons,
    most_changed,
    row_neurons,
    threshold,
)
from loratomy.unlearning.trained.tsbd import active, active_objective, choose, unlearned

from ... import tiny
from ..conftest import random_adapter

ON = np.array([True, True])


def test_the_most_changed_are_taken_by_hand():
    nwc = np.array([0.3, 2.0, 0.1, 0.7])
    assert most_changed(nwc, 0.5).tolist() == [False, True, False, True]  # 2 of 4
    assert most_changed(nwc, 0.01).tolist() == [False, True, False, False]  # at least one
    # 0.5 of 5 sub-weights, rounded to even: the 2 largest are 0.9 and 0.6.
    assert threshold([torch.tensor([0.1, 0.9]), torch.tensor([0.6, 0.2, 0.0])], 0.5) == (
        pytest.approx(0.6)
    )
    assert threshold([torch.tensor([0.1])], 0.0) == np.inf


@pytest.fixture
def two_directions():
    """dW = diag(4, 1): directions of strength 4 and 1, factors 2 and 1, then what moved."""
    d = directions_of(balanced(Adapter({"m": Factors(torch.eye(2), torch.eye(2), 1.0)}, {})))
    eye = Factors(torch.diag(torch.tensor([4.0, 1.0])), torch.eye(2), 1.0)
    d = directions_of(balanced(Adapter({"m": eye}, {})))
    before = d.adapter.modules["m"]
    a = before.a + torch.tensor([[0.5, -0.25], [0.0, 0.0]])
    b = before.b + torch.tensor([[0.0, 0.125], [0.0, -0.375]])
    return d, before, direction_neurons(d, Adapter({"m": Factors(a, b, 1.0)}, {}))


def test_nwc_of_directions_by_hand(two_directions):
    _, before, neurons = two_directions
    assert before.a.abs().tolist() == [[2, 0], [0, 1]]
    # Row 0 of A and column 0 of B: 0.5 + 0.25 + 0 + 0; row 1 and column 1: 0 + 0 + 0.125 + 0.375.
    assert neurons.nwc.tolist() == pytest.approx([0.75, 0.5])


def test_sub_weights_of_directions_by_hand(two_directions):
    _, before, neurons = two_directions
    # Of 8 sub-weights a quarter: 0.5 (A's 00) and 0.375 (B's 11) moved most, in whatever neuron.
    found = neurons.zeroed(ON, 0.25).adapter.modules["m"]
    assert found.a.tolist() == [[0, 0], before.a[1].tolist()]  # its 01 was 0 before
    assert found.b.abs().tolist() == [[2, 0], [0, 0]]
    # Of neuron 1 alone, 4 sub-weights, a quarter is one: B's 11.
    found = neurons.zeroed(np.array([False, True]), 0.25).adapter.modules["m"]
    assert torch.equal(found.a, before.a)
    assert found.b.abs().tolist() == [[2, 0], [0, 0]]
    # Of neuron 0 alone half of 4: both of A's row 0; B moved elsewhere only.
    found = neurons.zeroed(np.array([True, False]), 0.5).adapter.modules["m"]
    assert not found.a[0].any() and torch.equal(found.b, before.b)


def two_rows(weight: torch.Tensor) -> Subject:
    model = torch.nn.ModuleDict({"m": torch.nn.Linear(2, 2, bias=False)})
    model["m"].weight = torch.nn.Parameter(weight, requires_grad=False)
    model.get_input_embeddings = lambda: torch.nn.Embedding(2, 2)
    return Subject(model, tiny.subject().renderer, FAMILIES["llama"], "two rows")


def test_nwc_and_sub_weights_of_rows_by_hand():
    on = two_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    before = Adapter(
        {"m": Factors(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5], [0.0]]), 2)}, {}
    )
    dense = torch.tensor([[0.25, 1.0], [0.0, 0.5]])
    after = Adapter({"m": Factors(dense, torch.eye(2), 1.0)}, {})
    neurons = row_neurons(on, before, after)
    # dW = [[1, 0], [0, 0]] moved by [[-0.75, 1], [0, 0.5]]: sums 1.75 and 0.5.
    assert neurons.nwc.tolist() == [1.75, 0.5]
    merged = {0.25: [[2, 0], [3, 4]], 0.5: [[0, 0], [3, 4]], 0.75: [[0, 0], [3, 0]]}
    # W + dW = [[2, 2], [3, 4]]; of 4 sub-weights the most changed: 01, then 00, then 11.
    for share, want in merged.items():
        state = neurons.zeroed(ON, share)
        assert state.adapter is before
        assert (state.weights["m"] + before.modules["m"].dense()).tolist() == want
    # With -dW below the zeros: at 0.5 the base's row 0 becomes (-1, 0).
    assert neurons.zeroed(ON, 0.5).weights["m"].tolist() == [[-1, 0], [3, 4]]
    # Row 1 alone, half of 2 sub-weights: its 11.
    only = neurons.zeroed(np.array([False, True]), 0.5)
    assert only.weights["m"].tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_zeroed_rows_are_those_of_dense_float64_weights(model_type):
    on = tiny.subject(model_type)
    before, after = tiny.adapter(on), tiny.adapter(on, seed=2)
    neurons = row_neurons(on, before, after)
    sizes = {n: after.modules[n].dense().double() - f.dense().double() for n, f in _of(before)}
    nwc = torch.cat([s.abs().sum(-1).flatten() for s in sizes.values()])
    assert neurons.nwc == pytest.approx(nwc.numpy(), rel=1e-5)
    picked = most_changed(neurons.nwc, 0.1)
    state = neurons.zeroed(picked, 0.7)
    # The same by sorting every single sub-weight of the picked rows, module by module.
    rows = torch.as_tensor(picked).split([s.shape[:-1].numel() for s in sizes.values()])
    inside = [
        (r.reshape(s.shape[:-1])[..., None] & torch.ones_like(s, dtype=torch.bool))
        for r, s in zip(rows, sizes.values(), strict=True)
    ]
    pool = torch.cat([s.abs()[i] for s, i in zip(sizes.values(), inside, strict=True)])
    least = torch.quantile(pool, 0.3)
    total = 0
    for (name, f), here in zip(_of(before), inside, strict=True):
        merged = base_weight(on, name).double() + f.dense().double()
        want = torch.where(here & (sizes[name].abs() > least), 0.0, merged)
        base = state.weights.get(name, base_weight(on, name)).double()
        assert torch.allclose(base + f.dense().double(), want, atol=1e-6)
        total += int((want != merged).sum())
    assert total == round(0.7 * len(pool))


def _of(adapter):
    return adapter.modules.items()


def test_the_gradient_by_hand_on_a_quadratic():
    theta = {"x": torch.tensor(3.0, requires_grad=True), "y": torch.tensor(1.0, requires_grad=True)}

    def loss(w):
        return w["x"] ** 2 / 2 + 2 * w["y"] ** 2

    # grad L = (x, 4 y) = (3, 4) of norm 5; a step of 1 leads to (3.6, 1.8), where it is (3.6, 7.2).
    # 0.3 (3, 4) + 0.7 (3.6, 7.2) = (3.42, 6.24).
    value = active(loss, theta, r=1.0, a=0.7)
    assert all(p.grad is None for p in theta.values())
    value.backward()
    assert theta["x"].grad.item() == pytest.approx(3.42)
    assert theta["y"].grad.item() == pytest.approx(6.24)
    # L = 4.5 + 2 = 6.5 and 6.48 + 6.48 = 12.96: 0.3 * 6.5 + 0.7 * 12.96 = 11.022.
    assert value.item() == pytest.approx(11.022)


def test_no_gradient_no_step():
    theta = {"x": torch.zeros(2, requires_grad=True)}
    active(lambda w: w["x"].square().sum(), theta, r=1.0, a=0.7).backward()
    assert theta["x"].grad.tolist() == [0, 0]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_the_gradient_is_that_of_really_moved_factors(model_type):
    on = tiny.subject(model_type)
    rows = [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]
    batch = collate(rows, on.renderer.pad_id)
    with on.attached({"x": tiny.adapter(on)}, trainable=True) as attached:
        tiny.in_double(on)
        factors = [p for p in on.model.parameters() if p.requires_grad]

        def slopes():
            """Of the summed loss, by transformers' own loss and plain backward."""
            loss = on.model(**batch, use_cache=False).loss
            found = torch.autograd.grad(loss * sum(len(r.completion) for r in rows), factors)
            return [g.clone() for g in found]

        first = slopes()
        size = sum(float(g.square().sum()) for g in first) ** 0.5
        with torch.no_grad():
            for p, g in zip(factors, first, strict=True):
                p.add_(0.5 * g / size)
        second = slopes()
        with torch.no_grad():
            for p, g in zip(factors, first, strict=True):
                p.sub_(0.5 * g / size)
        active_objective(r=0.5, a=0.7).sums(attached, batch).sum().backward()
        moved = 0.0
        for p, one, two in zip(factors, first, second, strict=True):
            want = 0.3 * one + 0.7 * two
            assert torch.allclose(p.grad, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
            moved = max(moved, float((want - one).abs().max() / one.abs().max()))
        assert moved > 0.05  # the second gradient is another one


SHARES = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.02, 0.1)
OPTIONS = {"epochs": 1, "clean_rows": 8, "batch_size": 8, "stride": 0.1}


def test_directions_end_to_end_on_clean_rows_alone(make_bench, subject):
    adapter = random_adapter(subject, rank=3, scale=0.03, seed=1)
    bench = make_bench(adapter)
    config = METHODS["tsbd"].config(tolerance=1.2, **OPTIONS)
    state, record = operate("tsbd", bench, config)
    blind = replace(bench, triggered=[], negative=[], work=bench.work / "blind")
    blind.work.mkdir()
    again, _ = operate("tsbd", blind, config)
    assert not state.weights  # a plain adapter is left
    for name, f in _of(state.adapter):
        assert torch.equal(f.a, again.adapter.modules[name].a)
        assert torch.equal(f.b, again.adapter.modules[name].b)
    assert "of the singular directions (" in record.summary
    assert record.reached and not record.uncertain
    assert record.path is None and record.directions_cut == 0


def test_n_is_the_last_share_before_clean_perplexity_leaves(make_bench, subject):
    adapter = random_adapter(subject, rank=3, scale=0.03, seed=1)
    bench = make_bench(adapter)
    config = METHODS["tsbd"].config(over="neurons", shares=SHARES, tolerance=1.2, **OPTIONS)
    learn, held = halves(bench.clean_rows, 8)
    neurons, _ = unlearned(bench, learn, config)

    def plainly(state):
        with treated(subject, state):
            return perplexity(subject, held, batch_tokens=512)[0]

    start = Treated(adapter)
    before = plainly(start)
    seen = [plainly(neurons.zeroed(most_changed(neurons.nwc, s), 0.7)) for s in config.shares]
    good = [value <= 1.2 * before for value in seen]
    last = good.index(False) - 1
    assert 0 < last < len(good) - 1  # neither end of the grid
    found = choose(subject, neurons, start, held, config, batch_tokens=512)
    assert found == pytest.approx((config.shares[last], before, seen[last]), rel=1e-5)
    strict = config.model_copy(update={"tolerance": 1 + 1e-9, "shares": (0.5, 0.9)})
    assert choose(subject, neurons, start, held, strict, batch_tokens=512)[0] == 0
    # A share that is given is taken, whatever it costs.
    given = config.model_copy(update={"n": 0.9})
    assert choose(subject, neurons, start, held, given, batch_tokens=512)[0] == 0.9


def test_rows_end_to_end_train_on_the_replaced_base(make_bench, subject):
    adapter = random_adapter(subject, rank=3, scale=0.03, seed=1)
    bench = make_bench(adapter)
    config = METHODS["tsbd"].config(over="neurons", n=0.05, a=0.0, **OPTIONS)
    before, marks = tiny.state(subject), tiny.marks(subject)
    state, record = operate("tsbd", bench, config)
    assert tiny.same_state(before, tiny.state(subject)) and tiny.marks(subject) == marks
    learn, _ = halves(bench.clean_rows, 8)
    neurons, _ = unlearned(bench, learn, config)
    zeroed = neurons.zeroed(most_changed(neurons.nwc, 0.05), 0.7)
    assert state.weights.keys() == zeroed.weights.keys() and state.weights
    assert all(torch.equal(w, zeroed.weights[n]) for n, w in state.weights.items())
    # The first loss is that of the zeroed model, before any step.
    with treated(subject, zeroed):
        first, _ = perplexity(subject, learn, batch_tokens=512)
    assert record.loss[0] == pytest.approx(np.log(first), rel=1e-4)
    assert record.leaves == "adapter and weights"
    assert f"({round(0.05 * len(neurons.nwc))} of {len(neurons.nwc)};" in record.summary


def test_its_control_zeroes_as_many_neurons_at_random(make_bench, subject):
    adapter = random_adapter(subject, rank=3, scale=0.03, seed=1)
    bench = make_bench(adapter)
    config = METHODS["tsbd"].config(over="neurons", n=0.05, m=1.0, a=0.0, **OPTIONS)
    state, record = operate("control-neurons", bench, config, control_for="tsbd")
    learn, held = halves(bench.clean_rows, 8)
    neurons, _ = unlearned(bench, learn, config)
    most = most_changed(neurons.nwc, 0.05)
    drawn = np.random.default_rng(bench.seed).permutation(most)
    assert drawn.sum() == most.sum() and (drawn & ~most).any()
    zeroed = neurons.zeroed(drawn, 1.0)
    assert state.weights.keys() == zeroed.weights.keys()
    assert all(torch.equal(w, zeroed.weights[n]) for n, w in state.weights.items())
    with treated(subject, zeroed):
        after, _ = perplexity(subject, held, batch_tokens=512)
    assert f"-> {after:.3f}); then" in record.summary
    assert record.summary.startswith("with random neurons: ")
    assert record.fit is not None and record.control_for == "tsbd"


def test_what_cannot_be_done_is_said(make_bench, small):
    bench = make_bench(small)
    wrong = [replace(r, completion="zq zq zq") for r in bench.clean_rows]
    with pytest.raises(LoratomyError, match="nothing to unlearn"):
        config = METHODS["tsbd"].config(**OPTIONS)
        operate("tsbd", replace(bench, clean_rows=wrong), config)
    tied = tiny.subject(tie_word_embeddings=True)
    head = Factors(torch.ones(1, 32), torch.ones(tied.shapes["lm_head"][0], 1), 1.0)
    with pytest.raises(
        LoratomyError, match=r"shares its weight with model\.embed_tokens.*over=directions"
    ):
        check_replaceable(tied, {"lm_head": head})
    packed = two_rows(torch.zeros(2, 2, dtype=torch.int8))
    factors = Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    with pytest.raises(LoratomyError, match=r"int8.*quantised.*over=directions"):
        check_replaceable(packed, {"m": factors})


def test_no_share_that_fits_is_not_written_as_a_success(make_bench, subject):
    adapter = random_adapter(subject, rank=3, scale=0.03, seed=1)
    config = METHODS["tsbd"].config(over="neurons", tolerance=1 + 1e-9, shares=(0.9,), **OPTIONS)
    state, record = operate("tsbd", make_bench(adapter), config)
    assert not record.reached and not state.weights
    assert "no n fits: zeroing 90.0% of the neurons" in record.uncertain[-1]
