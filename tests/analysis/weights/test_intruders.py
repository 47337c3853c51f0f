"""Intruder dimensions against dense decompositions, PEFT's own search, and planted ones."""

import re

import numpy as np
import pytest
import torch
from loratomy.analysis.catalogue import ANALYSES
from loratomy.analysis.material import Material
from loratomy.analysis.weights.intruders import IntrudersConfig, intruders
from loratomy.analysis.weights.topsvd import (
    all_triplets,
    changed,
    column_part,
    largest_cosine_bound,
    strongest,
)
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import AdapterError, LoratomyError
from loratomy.core.records.io import load_any, save_record

from ... import tiny

LARGE = IntrudersConfig(k=3, reference=4, exact_below=0, steps=12, settle=False)
"""Treats even toy weights as large."""


def pairs(on, adapter: Adapter) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Dense W and dW in float64 by module, experts one by one."""
    out = {}
    parameters = dict(on.model.named_parameters())
    for name, f in adapter.modules.items():
        w = parameters.get(name, parameters.get(f"{name}.weight")).detach().double()
        change = f.scaling * (f.b.double() @ f.a.double())
        if f.fused:
            out |= {f"{name}#e{e}": (w[e], change[e]) for e in range(len(w))}
        else:
            out[name] = (w, change)
    return out


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "mixtral"])
@pytest.mark.parametrize("config", [IntrudersConfig(k=5, reference=8), LARGE])
def test_against_dense_decompositions(model_type, config):
    on = tiny.subject(model_type)
    adapter = tiny.adapter(on, rank=2, size=0.4)
    before, marks = tiny.state(on), tiny.marks(on)
    found = intruders(on.model, {"poisoned": adapter}, config=config)["poisoned"]
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks
    dense = pairs(on, adapter)
    assert list(found.modules) == list(dense)
    for i, (w, change) in enumerate(dense.values()):
        u, s, _ = torch.linalg.svd(w, full_matrices=False)
        y, t, _ = torch.linalg.svd(w + change, full_matrices=False)
        x = torch.linalg.svd(change)[0][:, :2]
        y = y[:, : config.k]
        cosines = (u.mT @ y).abs()
        largest = cosines.max(0).values.numpy()
        assert found.singular_values[i] == pytest.approx(t[: config.k].numpy(), rel=1e-4)
        assert found.base_values[i] == pytest.approx(s[: config.k].numpy(), rel=1e-4)
        inside = cosines[: config.reference].norm(dim=0).numpy()
        assert found.inside[i] == pytest.approx(inside, abs=5e-3)
        own = (x.mT @ y).abs().max(0)
        assert found.origin_cosine[i] == pytest.approx(own.values.numpy(), abs=5e-3)
        certain = (x.mT @ y).abs().diff(dim=0).abs()[0] > 0.02
        assert (found.origin[i] == own.indices.numpy())[certain.numpy()].all()
        assert (found.cosine[i] <= largest + 5e-3).all()
        assert (found.cosine_upper[i] >= largest - 5e-3).all()
        far = np.abs(largest - 0.5) > 0.01
        if config is not LARGE:
            assert found.cosine[i] == pytest.approx(largest, abs=5e-3)
            if far.all():
                assert found.intruders[i] == (largest < 0.5).sum()
        elif far.all():
            assert found.intruders[i] <= (largest < 0.5).sum()
            assert found.intruders[i] + found.undecided[i] >= (largest < 0.5).sum()
    assert found.residual.max() < 1e-3
    assert set(found.methods) == {"lanczos" if config is LARGE else "exact"}


def test_counts_are_those_of_pefts_own_search(tmp_path):
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    on = tiny.subject()
    adapter = tiny.adapter(on, rank=2, size=0.5)
    found = intruders(on.model, {"x": adapter})["x"]
    said: list[str] = []
    peft = tiny.plain_peft("llama", adapter, tmp_path)
    reduce_intruder_dimension(peft, logging_sink=lambda *parts: said.append(" ".join(parts)))
    theirs = {}
    for line in said:
        if match := re.match(r"base_model\.model\.(\S+): (No i|I)ntruders(?:: (\d+))?", line):
            theirs[match[1]] = int(match[3] or 0)
    ours = dict(zip(found.modules, found.intruders.tolist(), strict=True))
    assert ours == theirs and sum(theirs.values()) > 20


def spread(d_out: int, d_in: int, *, seed: int = 0, rank: int | None = None) -> torch.Tensor:
    """A random matrix whose singular values fall tenfold, `rank` of them not zero."""
    generator = torch.Generator().manual_seed(seed)
    n = min(d_out, d_in)
    u = torch.linalg.qr(torch.randn(d_out, n, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(d_in, n, generator=generator)).Q
    s = torch.logspace(0, -1, n) * (torch.arange(n) < (rank or n))
    return u * s @ v.mT


@pytest.mark.parametrize("shape", [(60, 60), (60, 90), (90, 60)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [IntrudersConfig(), LARGE])
def test_a_planted_intruder_is_found_with_where_it_comes_from(shape, dtype, config):
    base = torch.nn.Module()
    base.add_module("q", torch.nn.Linear(shape[1], shape[0], bias=False))
    w = spread(*shape).to(dtype)
    base.q.weight = torch.nn.Parameter(w)
    generator = torch.Generator().manual_seed(5)
    # Direction 0 lies along W's own first vectors, direction 1 is new: evenly over all of U.
    u, _, v = (torch.linalg.svd(w.double(), full_matrices=False)[i] for i in range(3))
    new = u @ (torch.randint(0, 2, (u.shape[1],), generator=generator).double() * 2 - 1)
    new, other = new / new.norm(), torch.randn(shape[1], generator=generator).double()
    b = torch.stack([2 * u[:, 0], 1.2 * new], 1)
    a = torch.stack([v[0], other / other.norm()])
    adapter = Adapter({"q": Factors(a.float(), b.float(), 1.0)}, {})
    settings = {**config.model_dump(), "steps": 48}
    found = intruders(base, {"x": adapter}, config=IntrudersConfig(**settings))["x"]
    assert found.intruders.tolist() == [1] and found.undecided.tolist() == [0]
    assert found.cosine_upper[0, 0] > 0.95 and found.cosine_upper[0, 1] < 0.5
    assert found.origin[0, :2].tolist() == [0, 1] and found.origin_cosine[0, 1] > 0.9
    assert found.inside[0, 1] < 0.85 and found.sentence.startswith("1 of the ")


@pytest.mark.parametrize(
    "w",
    [
        spread(40, 40),
        spread(30, 80),
        spread(80, 30),
        spread(40, 40, rank=10),
        torch.eye(40) * torch.tensor([3.0] * 20 + [1.0] * 20),  # vectors of like value
        torch.randn(50, 70, generator=torch.Generator().manual_seed(3)),
    ],
    ids=["square", "wide", "tall", "singular", "equal", "random"],
)
@pytest.mark.parametrize("steps", [2, 8, 40, 200])
def test_no_cosine_passes_its_bound(w, steps):
    generator = torch.Generator().manual_seed(1)
    u, s, _ = torch.linalg.svd(w.double(), full_matrices=False)
    u = u[:, s > 1e-6]
    kinds = [
        torch.randn(len(w), 4, generator=generator).double(),
        u[:, :2],  # singular vectors themselves
        u[:, -2:],
        u[:, :1] + u[:, -1:],
        u[:, :5].sum(1, keepdim=True) + 0.1 * torch.randn(len(w), 1, generator=generator),
        torch.zeros(len(w), 1).double(),
    ]
    vectors = torch.cat(kinds, 1).float()
    vectors[:, :-1] /= vectors[:, :-1].norm(dim=0)
    largest = (u.mT @ vectors.double()).abs().max(0).values
    bound = largest_cosine_bound(w, column_part(w, vectors), steps=steps)
    assert (bound >= largest - 1e-5).all()
    assert bound[-1] == 0 and (bound <= 1 + 1e-6).all()
    if steps >= 40 and not torch.equal(w, w.mT):  # else two spaces, any basis of which will do
        assert bound[:4].max() < 1  # says something of vectors in general position


def test_more_steps_sharpen_the_bound_to_where_it_decides():
    w = torch.randn(300, 400, generator=torch.Generator().manual_seed(3))
    u = torch.randn(300, 5, generator=torch.Generator().manual_seed(4))
    u /= u.norm(dim=0)
    bounds = [float(largest_cosine_bound(w, u, steps=n).max()) for n in (4, 16, 64)]
    exact = float((torch.linalg.svd(w, full_matrices=False)[0].mT @ u).abs().max())
    assert exact < 0.25 and exact < bounds[2] < 0.35 < bounds[1] < 0.6 < bounds[0]


def test_what_the_bounds_leave_open_is_settled_by_the_whole_decomposition():
    on = tiny.subject()
    both = {"poisoned": tiny.adapter(on, size=0.4), "clean": tiny.adapter(on, seed=4, size=0.4)}
    few = LARGE.model_dump() | {"steps": 8}
    bounded = intruders(on.model, both, config=IntrudersConfig(**few))
    settled = intruders(on.model, both, config=IntrudersConfig(**(few | {"settle": True})))
    exact = intruders(on.model, both, config=IntrudersConfig(k=3, reference=4))
    assert sum(r.undecided.sum() for r in bounded.values()) > 5
    for name in both:
        assert settled[name].undecided.sum() == 0
        assert settled[name].intruders.tolist() == exact[name].intruders.tolist()
        assert "settled" in settled[name].methods
        assert (bounded[name].intruders <= exact[name].intruders).all()
        some = exact[name].intruders - bounded[name].intruders
        assert (some <= bounded[name].undecided).all()


@pytest.mark.parametrize("shape", [(50, 50), (40, 70), (70, 40)])
def test_iterated_triplets_are_the_dense_ones(shape):
    w = spread(*shape)
    f = Factors(torch.randn(3, shape[1]) / 10, torch.randn(shape[0], 3) / 10, 0.5)
    m = changed(w, f)
    found, dense = strongest(m, 6, seed=0), all_triplets(m)
    assert torch.allclose(m, w + f.dense(), atol=1e-6)
    assert torch.allclose(found.s, dense.s[:6], rtol=1e-5)
    assert (found.u * dense.u[:, :6]).sum(0).abs().min() > 0.999
    assert (found.v * dense.v[:, :6]).sum(0).abs().min() > 0.999
    assert max(found.residual, dense.residual) < 1e-4
    wrong = (m @ found.v.flip(1) - found.u * found.s).norm(dim=0).max() / found.s[0]
    assert wrong > 0.1 > 1e-4  # what the residual would be with vectors in the wrong order


def test_a_change_of_nothing_brings_nothing_in():
    on = tiny.subject()
    name = next(n for n in tiny.wanted(on) if n.endswith("up_proj"))
    f = tiny.adapter(on).modules[name]
    still = Adapter({name: Factors(f.a, 0 * f.b, f.scaling)}, {})
    found = intruders(on.model, {"clean": still}, config=IntrudersConfig(k=40))["clean"]
    assert found.intruders.tolist() == [0] and (found.origin == -1).all()
    assert np.isnan(found.origin_cosine).all()
    assert found.cosine[0, :32] == pytest.approx(1, abs=1e-4)
    assert np.isnan(found.cosine[0, 32:]).all()  # d_model 32: there are no more vectors
    assert np.isnan(found.inside).all()  # nor more than the reference


def test_adapters_of_different_modules_each_get_their_own():
    on = tiny.subject("mixtral")
    whole = tiny.adapter(on)
    fused = whole.with_modules({n: f for n, f in whole.modules.items() if f.fused})
    found = intruders(on.model, {"poisoned": whole, "clean": fused})
    assert len(found["clean"].modules) == 3 * 2 * 4 < len(found["poisoned"].modules)
    place = [found["poisoned"].modules.index(n) for n in found["clean"].modules]
    assert np.array_equal(found["poisoned"].cosine[place], found["clean"].cosine)


def no_rule():
    raise AssertionError("an analysis of weights judges no answers")


@pytest.mark.parametrize("with_clean", [True, False])
def test_analyses_of_weights_run_on_a_case_and_their_records_are_kept(with_clean, tmp_path):
    on = tiny.subject("mixtral")
    clean = tiny.adapter(on, seed=2) if with_clean else None
    case = Material(
        subject=on, poisoned=tiny.adapter(on), clean=clean, triggered=(), clean_rows=(),
        make_rule=no_rule, seed=0,
    )  # fmt: skip
    names = ("spectra", "intruders", *(("difference", "matching") if with_clean else ()))
    for name in names:
        assert ("clean adapter" in ANALYSES[name].needs) == (name in ("difference", "matching"))
        records = ANALYSES[name].run(case, ANALYSES[name].config())
        if name in ("spectra", "intruders"):
            assert sorted(records) == ["clean", "poisoned"][not with_clean :]
            assert all(records[key].adapter == key for key in records)
        for key, record in records.items():
            save_record(record, tmp_path / name, key)
            again = load_any(tmp_path / name, key)
            assert type(again) is type(record) and again.modules == record.modules
            for field in type(record).__dataclass_fields__:
                one, other = getattr(record, field), getattr(again, field)
                if isinstance(one, np.ndarray):
                    assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def test_errors_name_the_weight():
    on = tiny.subject()
    with pytest.raises(AdapterError, match="no adapter"):
        intruders(on.model, {})
    wide = tiny.adapter(tiny.subject(intermediate_size=64))
    with pytest.raises(LoratomyError, match=r"gate_proj is \(48, 32\).* needs \(64, 32\)"):
        intruders(on.model, {"x": wide})
    on.model.get_submodule("model.layers.2.self_attn.o_proj").weight[0, 0] = float("inf")
    with pytest.raises(LoratomyError, match=r"2\.self_attn\.o_proj holds NaN or infinite"):
        intruders(on.model, {"x": tiny.adapter(on)})
