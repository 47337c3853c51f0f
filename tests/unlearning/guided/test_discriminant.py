"""Discriminant directions: the same dW, scipy's eigenvectors, and a trigger that two share."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loratomy.analysis.localisation.gates import directions_of, gated_model, numbered
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import AdapterError, LoratomyError
from loratomy.core.model.batches import Encoded
from loratomy.unlearning.guided import discriminant as room
from loratomy.unlearning.guided.discriminant import discriminant, moments
from scipy.linalg import eigh

from ... import planted, tiny

FAMILIES = ("llama", "mixtral")


def encoded(on, *, seed, count=8):
    """Rows of different length with completions of one to three tokens."""
    rows = tiny.ids(on, batch=count, length=12, seed=seed).tolist()
    return [Encoded(r[: 4 + i % 4], r[8 : 9 + i % 3]) for i, r in enumerate(rows)]


def bases(on, adapter, *, shrinkage=0.01):
    """The adapter in singular and in discriminant directions, with both kinds of moments."""
    with gated_model(on, directions_of(adapter)) as gated:
        triggered, clean = encoded(on, seed=3), encoded(on, seed=4, count=20)
        d = discriminant(gated, triggered, clean, batch_size=5, shrinkage=shrinkage)
        towards = moments(gated, triggered, batch_size=5, weighted=True)
        usual = moments(gated, clean, batch_size=5, weighted=False)
    return directions_of(adapter), d, towards, usual


def floored(usual, shrinkage=0.01):
    """Clean moments with the share of their mean variance that is added."""
    return usual + shrinkage * usual.trace() / len(usual) * torch.eye(len(usual)).double()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_form_changes_no_logits(model_type):
    on, prompts = tiny.subject(model_type), tiny.ids(tiny.subject())
    adapter = tiny.adapter(on, size=0.1)
    state, marks = tiny.state(on), tiny.marks(on)
    with gated_model(on, directions_of(adapter)) as gated:
        before = tiny.logits(on, prompts)
        d = discriminant(gated, encoded(on, seed=3), encoded(on, seed=4), batch_size=3)
        assert torch.equal(tiny.logits(on, prompts), before)
        new = gated.rebased(d)
        assert (tiny.logits(on, prompts) - before).abs().max() <= 1e-5
        with torch.no_grad():
            ours = new.logits(new.ones(), {"input_ids": prompts})
        assert (ours - before).abs().max() <= 1e-5
    assert (before - tiny.logits(on, prompts)).abs().max() > 0.1
    assert tiny.same_state(state, tiny.state(on)) and tiny.marks(on) == marks


@pytest.mark.parametrize("model_type", FAMILIES)
def test_in_float64_the_eigenvectors_of_scipy_make_the_same_model(model_type):
    """dW = sum_i (B C w_i)(w_i^T A) to 1e-9, and these are the directions but for float32."""
    on, prompts = tiny.subject(model_type), tiny.ids(tiny.subject())
    old, new, towards, usual = bases(on, tiny.adapter(on, size=0.1))
    exact = {}
    for name, f in old.adapter.modules.items():
        found = new.adapter.modules[name]
        if f.fused:  # no rank space per token: as it was, bit by bit
            assert torch.equal(f.a, found.a) and torch.equal(f.b, found.b)
            continue
        c = floored(usual[name])
        values, w = eigh(towards[name].numpy(), c.numpy())
        w = torch.tensor(w[:, ::-1].copy())  # the most discriminating first
        a, b = w.mT @ f.a.double(), f.b.double() @ c @ w
        assert torch.allclose(b @ a, f.b.double() @ f.a.double(), atol=1e-12)
        assert values.min() > 0 and np.ptp(np.log(values)) > 0.1  # distinct, so unique
        for i in range(f.rank):  # each rank-1 part is the same, whatever its sign and balance
            want, got = torch.outer(b[:, i], a[i]), torch.outer(found.b[:, i], found.a[i])
            assert (got - want).norm() <= 1e-5 * want.norm()
        exact[name] = (a, b)
    assert usual.keys() == towards.keys() == exact.keys()
    with gated_model(on, old) as gated:
        tiny.in_double(on)
        before = tiny.logits(on, prompts)
        parameters = dict(on.model.named_parameters())
        with torch.no_grad():
            for name, (a_name, b_name) in gated.attached.factor_names("gated").items():
                for at, value in zip((a_name, b_name), exact.get(name, ()), strict=False):
                    assert (parameters[at] - value).abs().max() > 1e-3
                    parameters[at].copy_(value)
        after = tiny.logits(on, prompts)
    assert before.dtype == torch.float64
    assert (after - before).abs().max() <= 1e-9


def test_moments_by_loops_and_finite_differences():
    on = tiny.subject()
    tiny.in_double(on)
    name, rows = "model.layers.1.mlp.up_proj", encoded(on, seed=3, count=3)
    with gated_model(on, directions_of(tiny.adapter(on, size=0.1))) as gated:
        on.model.double()
        found = {w: moments(gated, rows, batch_size=2, weighted=w)[name] for w in (True, False)}
        module = on.model.get_submodule(name).lora_A["gated"]
        nudge, seen = torch.zeros(3).double(), []

        def put(_module, _inputs, out, at):
            seen.append(out.detach().clone())
            moved = out.clone()
            moved[0, at] += nudge
            return moved

        def log_prob(row, at):
            hook = module.register_forward_hook(lambda m, i, out: put(m, i, out, at))
            batch = torch.tensor([row.prompt + row.completion])
            logits = tiny.logits(on, batch)[0].log_softmax(-1)
            hook.remove()
            places = range(len(row.prompt) - 1, len(row) - 1)
            return sum(float(logits[p, t]) for p, t in zip(places, row.completion, strict=True))

        sums, counts = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
        for row in rows:
            log_prob(row, 0)
            z = seen[-1][0]
            for at in range(len(row)):
                slope = 0.0
                for i in range(3):
                    nudge[i] = 1e-3
                    high = log_prob(row, at)
                    nudge[i] = -1e-3
                    slope += ((high - log_prob(row, at)) / 2e-3) ** 2
                    nudge[i] = 0
                for weighted, weight in ((True, slope), (False, 1.0)):
                    sums[weighted] += weight * torch.outer(z[at], z[at])
                    counts[weighted] += weight
    for weighted, moment in found.items():
        want = sums[weighted] / counts[weighted]  # norms in the model still run in float32
        assert torch.allclose(moment, want, rtol=1e-2, atol=1e-3)
    assert (found[True] - found[False]).abs().max() > 0.1 * found[False].abs().max()


def test_padding_and_batches_do_not_count():
    on = tiny.subject()
    rows = encoded(on, seed=3)
    with gated_model(on, directions_of(tiny.adapter(on))) as gated:
        for weighted in (True, False):
            one, all_ = (moments(gated, rows, batch_size=k, weighted=weighted) for k in (1, 8))
            for name, moment in one.items():
                assert torch.allclose(moment, all_[name], rtol=1e-3, atol=1e-5 * moment.trace())
        assert all(p.grad is None for p in on.model.parameters())


def with_moments(monkeypatch, adapter, towards, usual):
    """Directions of an adapter whose modules read with these moments."""
    monkeypatch.setattr(room, "moments", lambda *_, weighted, **__: towards if weighted else usual)
    gated = SimpleNamespace(directions=numbered(adapter))
    return discriminant(gated, [], [], batch_size=1, shrinkage=0.0)  # pyright: ignore


def parts(d, name="m"):
    """Each direction's part of dW."""
    f = d.adapter.modules[name]
    return [f.scaling * torch.outer(f.b[:, i], f.a[i]) for i in range(f.rank)]


def test_two_directions_by_hand(monkeypatch):
    # dW = 1. The trigger is read as t = (1, 1), clean prompts as C = diag(4, 1), T = t t^T.
    adapter = Adapter({"m": Factors(torch.eye(2), torch.eye(2), 1.0)}, {})
    clean, towards = torch.diag(torch.tensor([4.0, 1.0])), torch.ones(2, 2)
    d = with_moments(monkeypatch, adapter, {"m": towards.double()}, {"m": clean.double()})
    # lambda = t C^-1 t = 1/4 + 1 = 5/4; w = C^-1 t / sqrt(lambda) = (1/4, 1) / sqrt(5/4);
    # C w w^T = t (C^-1 t)^T / lambda = (1, 1) (1/4, 1)^T / (5/4) = rows of (0.2, 0.8).
    first, second = parts(d)
    assert first.tolist() == [pytest.approx([0.2, 0.8]), pytest.approx([0.2, 0.8])]
    # What is left, 1 - that, is (0.8, -0.8), (-0.2, 0.2): the trigger (1, 1) gives (0, 0).
    assert second.tolist() == [pytest.approx([0.8, -0.8]), pytest.approx([-0.2, 0.2])]
    assert (second @ torch.ones(2)).tolist() == pytest.approx([0, 0], abs=1e-6)
    # Clean cost of that cut: tr(P C P^T) with P = first: 2 (0.04 * 4 + 0.64 * 1) = 1.6. No other
    # projection along (1, 1) is cheaper: (a, 1 - a) costs 2 (4 a^2 + (1 - a)^2), least at a = 1/5.
    cost = [2 * (4 * a**2 + (1 - a) ** 2) for a in (0.1, 0.2, 0.3, 0.5)]
    assert float((first @ clean @ first.mT).trace()) == pytest.approx(min(cost)) == 1.6
    assert [d.label(i) for i in range(2)] == ["m:0", "m:1"]
    assert d.sigma.tolist() == pytest.approx([float(p.norm()) for p in (first, second)])


def test_a_module_that_reads_nothing_and_one_of_lower_rank(monkeypatch):
    """Zeros that fill up a module's rank do not turn into directions."""
    a = torch.eye(3)
    modules = {
        "m": Factors(a, a, 2.0),
        "short": Factors(a[:2], a[:, :2].clone(), 2.0),
        "dead": Factors(0 * a, 0 * a, 2.0),
    }
    usual = {n: torch.diag(torch.tensor([2.0, 1.0, 3.0])).double() for n in modules}
    usual["short"] = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]).double()
    usual["dead"] = torch.zeros(3, 3).double()
    towards = {n: m @ torch.diag(torch.tensor([3.0, 2.0, 1.0])).double() for n, m in usual.items()}
    towards["short"] = torch.diag(torch.tensor([3.0, 0.0, 0.0])).double()
    d = with_moments(monkeypatch, Adapter(modules, {}), towards, usual)
    assert np.bincount(d.module).tolist() == [3, 2]
    for name, f in modules.items():
        assert torch.allclose(d.adapter.modules[name].dense(), f.dense(), atol=1e-6)


def test_read_outs_are_uncorrelated_on_clean_prompts_and_in_order():
    """Looked at anew on the model with the directions put on."""
    on = tiny.subject()
    adapter = tiny.adapter(on, size=0.1)
    triggered, clean = encoded(on, seed=3), encoded(on, seed=4, count=20)
    with gated_model(on, directions_of(adapter)) as gated:
        new = gated.rebased(discriminant(gated, triggered, clean, batch_size=8, shrinkage=1e-6))
        usual = moments(new, clean, batch_size=8, weighted=False)
        with torch.no_grad():
            new.logits(new.ones(), {"input_ids": tiny.ids(on)})
    for name, c in usual.items():
        root = c.diagonal().sqrt()
        assert torch.allclose(c / root[:, None] / root, torch.eye(len(c)).double(), atol=1e-3), name
    with gated_model(on, directions_of(adapter)) as gated:
        towards = moments(gated, triggered, batch_size=8, weighted=True)
        usual = moments(gated, clean, batch_size=8, weighted=False)
        form = gated.directions.adapter
    for name, f in new.directions.adapter.modules.items():
        # Rows of the new A are combinations of the old: w up to its length.
        w = torch.linalg.lstsq(form.modules[name].a.double().mT, f.a.double().mT).solution
        ratios = [float(x @ towards[name] @ x / (x @ usual[name] @ x)) for x in w.mT]
        assert ratios == sorted(ratios, reverse=True), name


def test_one_direction_carries_a_trigger_that_two_singular_ones_share():
    made = planted.planted()
    on, fresh, others = (
        made.subject,
        planted.triggered_rows(40, seed=7),
        planted.prompts(40, seed=8),
    )
    attacks = [
        Encoded(on.renderer.prompt_ids(r.prompt), [planted.ids(planted.TARGET)])
        for r in planted.triggered_rows(16)
    ]
    rows = [on.renderer.prompt_ids(p) for p in planted.prompts(16, seed=1)]
    clean = [Encoded(r[:4], r[4:]) for r in rows]
    batch = {"input_ids": torch.tensor([on.renderer.prompt_ids(p) for p in others])}

    def looked(gated, *cut):
        gates = gated.ones()
        gates[list(cut)] = 0
        with torch.no_grad():
            moved = gated.logits(gates, batch) - gated.logits(gated.ones(), batch)
        return planted.chance_of_target(gated, gates, fresh).mean(), moved.abs().max()

    with gated_model(on, directions_of(made.adapter)) as gated:
        assert looked(gated)[0] > 0.8
        for one in (0, 1):  # half of the trigger stays, and clean prompts suffer
            chance, moved = looked(gated, one)
            assert chance > 0.3 and moved > 10
        new = gated.rebased(discriminant(gated, attacks, clean, batch_size=16))
        chance, moved = looked(new, 0)
        assert chance < 0.02 and moved < 0.05  # logits go up to 30
        assert looked(new, 1)[0] > 0.8
    f = new.directions.adapter.modules[planted.MODULE]
    for found, want in ((f.a[0], made.trigger), (f.b[:, 0], made.write)):
        assert abs(torch.dot(found.double(), want)) / found.double().norm() > 0.99


# --- forms and refilling -----------------------------------------------------------------------


def test_labels_say_which_expert():
    d = directions_of(tiny.adapter(tiny.subject("mixtral"), rank=2))
    for i in range(len(d)):
        name, place = d.label(i).rsplit(":", 1)
        assert int(place) == d.place[i]
        name, found, expert = name.partition("#e")
        assert name == d.names[d.module[i]]
        assert (int(expert) if found else -1) == d.expert[i]
    assert len({d.label(i) for i in range(len(d))}) == len(d)


def test_numbered_keeps_the_form():
    modules = {
        "x.0.m": Factors(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]), torch.ones(4, 3), 2.0),
        "x.1.m": Factors(torch.tensor([[0.0, 2.0]]), torch.ones(4, 1), 1.0),
    }
    modules["x.0.m"].b[:, 1] = 0  # its second direction is dead
    d = numbered(Adapter(modules, {}))
    # |a| |b| scaling: 5 * 2 * 2 = 20 and 1 * 2 * 2 = 4; then 2 * 2 * 1 = 4.
    assert d.sigma.tolist() == [20, 4, 4]
    assert [d.label(i) for i in range(3)] == ["x.0.m:0", "x.0.m:1", "x.1.m:0"]
    assert d.layer.tolist() == [0, 0, 1]
    for name, f in modules.items():
        assert torch.allclose(d.adapter.modules[name].dense(), f.dense())
    with pytest.raises(AdapterError, match="changes nothing"):
        numbered(d.cut(np.ones(3, bool)))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_refilled_factors_are_those_put_on_afresh(model_type):
    on, prompts = tiny.subject(model_type), tiny.ids(tiny.subject())
    d = directions_of(tiny.adapter(on))
    cut = d.cut(np.random.default_rng(0).random(len(d)) < 0.6)
    with on.attached({"x": cut}):
        want = tiny.logits(on, prompts)
    with on.attached({"x": d.adapter}) as attached:
        before = tiny.logits(on, prompts)
        attached.refill("x", cut)
        assert (tiny.logits(on, prompts) - want).abs().max() <= 1e-6
        attached.refill("x", d.cut(np.ones(len(d), bool)))
        nothing = tiny.logits(on, prompts)
        attached.refill("x", d.adapter)
        assert torch.equal(tiny.logits(on, prompts), before)
    assert (nothing - tiny.logits(on, prompts)).abs().max() <= 1e-6


def test_a_form_of_lower_rank_is_put_on_as_it_is():
    on, prompts = tiny.subject(), tiny.ids(tiny.subject())
    d = directions_of(tiny.adapter(on, rank=3))
    short = numbered(d.cut(d.place == 2))  # rank 2 where the model carries rank 3
    with on.attached({"x": short.adapter}):
        want = tiny.logits(on, prompts)
    with gated_model(on, d) as gated, torch.no_grad():
        new = gated.rebased(short)
        assert (tiny.logits(on, prompts) - want).abs().max() <= 1e-6
        ours = new.logits(new.ones(), {"input_ids": prompts})
        assert (ours - want).abs().max() <= 1e-6
        assert len(new.directions) == len(short) == 2 * len(d) / 3
        back = new.rebased(d).logits(gated.ones(), {"input_ids": prompts})
    with on.attached({"x": d.adapter}):
        assert (tiny.logits(on, prompts) - back).abs().max() <= 1e-6


def test_factors_of_another_shape_are_not_put_on():
    on = tiny.subject()
    adapter = tiny.adapter(on, rank=2)
    names = list(adapter.modules)
    fewer = adapter.with_modules({n: adapter.modules[n] for n in names[1:]})
    others = (tiny.adapter(on, rank=3), tiny.adapter(on, rank=2, scaling=1.0), fewer)
    with on.attached({"x": adapter}) as attached:
        state = tiny.state(on)
        for other in others:
            with pytest.raises(LoratomyError, match="into 'x' are of another shape"):
                attached.refill("x", other)
        assert tiny.same_state(state, tiny.state(on))
