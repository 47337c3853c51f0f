"""Merged models back to adapters: the same numbers by plain PEFT's merge, family by family."""

from dataclasses import dataclass

import pytest
import torch
from loratomy.core.adapter.extraction import extract
from loratomy.core.adapter.factors import Adapter, Factors, read_adapter, write_adapter
from loratomy.core.adapter.rounding import alike, change_of, holds, rounding_variance, step
from loratomy.core.errors import LoratomyError
from loratomy.core.model.checkpoints import open_checkpoint

from ... import tiny

FAMILIES = ("llama", "gemma2", "mixtral")


@dataclass
class InMemory:
    """Weights held in a dictionary."""

    weights: dict

    @property
    def linear(self):
        return {n.removesuffix(".weight"): s for n, s in self.shapes.items() if "proj" in n}

    @property
    def shapes(self):
        return {n: tuple(t.shape) for n, t in self.weights.items()}

    @property
    def dtypes(self):
        return {n: t.dtype for n, t in self.weights.items()}

    def read(self, name, expert=None):
        return self.weights[name] if expert is None else self.weights[name][expert]


def between(base, merged, **options):
    """The adapter and record between two dictionaries of weights."""
    two = InMemory(base), InMemory(merged)
    return extract(*two, names=("base", "merged"), model_type="llama", **options)


def random(*shape, seed=0, size=0.05):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


def low_rank(d_out, d_in, singular_values, seed=1):
    """A matrix with these singular values, float64."""
    s = torch.as_tensor(singular_values, dtype=torch.float64)
    u = torch.linalg.qr(random(d_out, len(s), seed=seed).double()).Q
    v = torch.linalg.qr(random(d_in, len(s), seed=seed + 1).double()).Q
    return u * s @ v.mT


def ranked(on) -> Adapter:
    """Another rank in every module, from 1 to 8, and a quarter of the modules untouched."""
    modules = {}
    for i, (name, f) in enumerate(tiny.adapter(on, rank=8).modules.items()):
        if i % 4 != 3:
            rank = 1 + i % 8
            modules[name] = Factors(f.a[..., :rank, :], f.b[..., :rank], f.scaling)
    return Adapter(modules, {})


def saved(model_type, adapter, folder, dtype=torch.float32):
    """Folders of a base and of the same with the adapter merged by PEFT; the merged model."""
    from peft import PeftModel

    write_adapter(adapter, folder / "given", base="tiny")
    tiny.model(model_type).to(dtype).save_pretrained(folder / "base")
    model = PeftModel.from_pretrained(tiny.model(model_type).to(dtype), folder / "given")
    merged = model.merge_and_unload()
    merged.save_pretrained(folder / "merged")
    return folder / "base", folder / "merged", merged


def from_folders(base, merged, **options):
    two = open_checkpoint(base), open_checkpoint(merged)
    return extract(*two, names=("base", "merged"), model_type="any", **options)


def relative(found: Factors, wanted: Factors) -> float:
    want = wanted.dense().double()
    return float((found.dense().double() - want).norm() / want.norm())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_peft_merged_in_float32_comes_back_exactly(model_type, tmp_path):
    on = tiny.subject(model_type)
    given = ranked(on)
    base, folder, merged = saved(model_type, given, tmp_path)
    found, record = from_folders(base, folder)
    assert list(found.modules) == [n for n in on.shapes if n in given.modules]
    for name, factors in given.modules.items():
        assert found.modules[name].rank == factors.rank
        assert relative(found.modules[name], factors) < 1e-5
    experts = {n: on.shapes[n][0] if len(on.shapes[n]) == 3 else 1 for n in given.modules}
    assert len(record.found) == sum(experts.values()) and not record.rounding
    assert all(m.residual < 1e-6 and m.energy > 1 - 1e-12 for m in record.found)
    # Through a folder and onto the base: the merged model's own logits.
    write_adapter(found, tmp_path / "found", base="tiny")
    again, prompts = read_adapter(tmp_path / "found", on.shapes), tiny.ids(on)
    with on.attached({"x": again}):
        ours = tiny.logits(on, prompts)
    with torch.no_grad():
        theirs = merged(input_ids=prompts, use_cache=False).logits
    assert (ours - theirs).abs().max() <= 5e-4 * theirs.abs().max()
    assert (tiny.logits(on, prompts) - theirs).abs().max() > 0.5


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_was_merged_in_16_bit_comes_back_to_the_stated_floor(model_type, dtype, tmp_path):
    given = ranked(tiny.subject(model_type))
    base, folder, _ = saved(model_type, given, tmp_path, dtype)
    found, record = from_folders(base, folder)
    assert set(found.modules) == set(given.modules)
    stated = {}
    for m in record.found:
        stated[m.module] = max(m.floor, stated.get(m.module, 0.0))
        assert m.weakest > m.edge
        # What is left is rounding; in small matrices the kept directions hold a share of it.
        assert 0.3 < m.residual / m.floor < 1.1
    for name, factors in given.modules.items():
        assert found.modules[name].rank == factors.rank
        # Of the rounding only what lies along the kept directions is in the factors.
        assert relative(found.modules[name], factors) < stated[name] < 0.01


def test_fused_and_separate_experts_on_disk_are_the_same_checkpoint(tmp_path):
    from safetensors.torch import save_file

    on = tiny.subject("mixtral")
    base, folder, merged = saved("mixtral", ranked(on), tmp_path)
    fused = tmp_path / "fused"
    fused.mkdir()
    (fused / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(
        {n: t.contiguous() for n, t in merged.state_dict().items()}, fused / "model.safetensors"
    )
    one, other = open_checkpoint(folder), open_checkpoint(fused)
    assert one.shapes == other.shapes
    for name, tensor in merged.state_dict().items():
        assert torch.equal(one.read(name), tensor) and torch.equal(other.read(name), tensor)
        if tensor.dim() == 3:
            assert torch.equal(one.read(name, 2), tensor[2])
            assert torch.equal(other.read(name, 2), tensor[2])
    here, there = from_folders(base, folder)[0], from_folders(base, fused)[0]
    for name, f in here.modules.items():
        assert torch.equal(f.a, there.modules[name].a)


def test_a_step_is_the_distance_to_the_next_number():
    # bfloat16 has 8 significant bits: from 1 to 2 in steps of 2**-7, from 2 to 4 of 2**-6.
    values = torch.tensor([1.0, -1.5, 2.0, 3.9, 0.25, 0.0])
    wanted = [2**-7, 2**-7, 2**-6, 2**-6, 2**-9, 2.0**-126 * 2**-7]
    assert step(values, torch.bfloat16).tolist() == wanted
    assert step(torch.tensor([0.0, 1e-6]), torch.float16).tolist() == [2.0**-24] * 2  # subnormal
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        grid = (random(500, size=1.0)).to(dtype)
        there = torch.nextafter(grid.abs(), torch.tensor(torch.inf, dtype=dtype))
        assert torch.equal(step(grid.double(), dtype), (there.double() - grid.abs()).float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_floor_is_the_energy_that_rounding_adds(dtype):
    before = random(300, 200).to(dtype)
    dw = random(300, 200, seed=3, size=0.02).to(dtype)
    after = (before.float() + dw.float()).to(dtype)
    error = (after.double() - before.double() - dw.double()).square().sum()
    of_sum = step(torch.maximum(before.abs(), after.abs()).double(), dtype).double() ** 2 / 12
    assert float(error / of_sum.sum()) == pytest.approx(1, abs=0.1)
    whole = rounding_variance(before.double(), after.double(), dtype)
    assert torch.all(whole >= of_sum) and whole.sum() < 1.5 * of_sum.sum()


def test_the_edge_bounds_the_norm_of_pure_rounding():
    before = random(300, 200)
    after = before.to(torch.bfloat16)
    change = change_of("x", before, after, torch.bfloat16)
    assert change is not None
    norm = float(torch.linalg.matrix_norm(after.double() - before.double(), 2))
    assert 0.25 * change.edge < norm < 0.6 * change.edge  # the edge has a margin of 2


def test_formats():
    assert holds(torch.float32, torch.bfloat16) and holds(torch.float32, torch.float16)
    assert not holds(torch.float16, torch.bfloat16) and not holds(torch.bfloat16, torch.float16)
    assert not holds(torch.bfloat16, torch.float32) and holds(torch.float16, torch.float16)
    exact = random(40, 30)
    assert alike(exact, exact.clone(), None) and not alike(exact, exact.bfloat16(), None)
    assert alike(exact, exact.bfloat16(), torch.bfloat16)
    assert not alike(exact, exact.bfloat16() * 1.01, torch.bfloat16)


def test_the_randomised_and_the_dense_route_agree_where_the_spectrum_decays():
    values = torch.logspace(0, -4, 40)
    before = {"q_proj.weight": random(300, 400).double(), "norm.weight": torch.ones(4)}
    dw = low_rank(300, 400, values)
    after = before | {"q_proj.weight": before["q_proj.weight"] + dw}
    found, record = between(before, after)
    f = found.modules["q_proj"]
    made = f.b.double() @ f.a.double()
    assert f.rank == 40 and float((made - dw).norm() / dw.norm()) < 1e-6
    assert record.found[0].strongest == pytest.approx(1.0, rel=1e-6)
    assert record.found[0].weakest == pytest.approx(1e-4, rel=1e-6)
    # Shares of the energy: 1, .395, .156 ... of squares that fall by 10**(-8/39) = .624 each.
    squares = values.double().square()
    shares = squares.cumsum(0) / squares.sum()
    for energy in (0.5, 0.9, 0.999):
        wanted = int((shares < energy).sum()) + 1
        cut, about = between(before, after, energy=energy)
        assert cut.modules["q_proj"].rank == wanted == about.found[0].rank
        assert about.found[0].energy == pytest.approx(float(shares[wanted - 1]), rel=1e-9)
        assert about.found[0].residual ** 2 == pytest.approx(1 - about.found[0].energy, rel=1e-5)


def test_a_full_change_is_no_adapter_unless_a_limit_is_given():
    before = {"q_proj.weight": random(600, 700)}
    after = {"q_proj.weight": before["q_proj.weight"] + random(600, 700, seed=4)}
    with pytest.raises(LoratomyError, match=r"q_proj changed in more than 256 directions \(256 ho"):
        between(before, after)
    found, record = between(before, after, rank_limit=5)
    dw = after["q_proj.weight"].double() - before["q_proj.weight"].double()
    s = torch.linalg.svdvals(dw).square()
    assert found.modules["q_proj"].rank == 5 == record.rank_limit
    # Without any decay the randomised directions are nearly, not wholly, the strongest ones.
    assert record.found[0].energy == pytest.approx(float(s[:5].sum() / s.sum()), rel=0.1)


def test_rounding_alone_is_no_adapter():
    exact = {"q_proj.weight": random(60, 50), "k_proj.weight": random(30, 50, seed=2)}
    dw = low_rank(60, 50, [0.3, 0.2]).float()
    shaken = exact | {"q_proj.weight": (exact["q_proj.weight"] + dw) - dw}  # merged and unmerged
    assert not torch.equal(shaken["q_proj.weight"], exact["q_proj.weight"])
    with pytest.raises(LoratomyError, match=r"nothing but rounding changed in 1 matrices .q_proj"):
        between(exact, shaken)
    with pytest.raises(LoratomyError, match="bit by bit"):
        between(exact, exact)
    real = shaken | {"k_proj.weight": exact["k_proj.weight"] + low_rank(30, 50, [0.1]).float()}
    found, record = between(exact, real)
    assert list(found.modules) == ["k_proj"]
    assert [m.module for m in record.rounding] == ["q_proj"] and record.rounding[0].rank == 0


def test_number_formats_that_differ():
    exact = {"q_proj.weight": random(80, 60), "norm.weight": 1 + random(60)}
    change = low_rank(80, 60, [1.0, 0.5]).float()
    short = {n: t.bfloat16() for n, t in exact.items()}
    finer = {n: t.float() for n, t in short.items()}
    finer["q_proj.weight"] += change
    found, record = between(short, finer)  # float32 holds every bfloat16: nothing was rounded
    assert found.modules["q_proj"].rank == 2 and record.found[0].residual < 1e-6
    merged = exact | {"q_proj.weight": exact["q_proj.weight"] + change}
    rounded = {n: t.bfloat16() for n, t in merged.items()}
    with pytest.raises(LoratomyError, match=r"float32 in the base and torch.bfloat16 in the merg"):
        between(exact, rounded)
    with pytest.raises(
        LoratomyError, match=r"norm.weight differs by the rounding to torch.bfloat1"
    ):
        between(short, merged)
    for one, other in ((exact, rounded), (short, merged)):
        found, record = between(one, other, other_dtype=True)
        assert found.modules["q_proj"].rank == 2
        assert 0.5 < record.found[0].residual / record.found[0].floor < 1.1


@pytest.mark.parametrize("name", ["embed_tokens.weight", "q_proj.bias", "norm.weight"])
def test_what_lora_cannot_express_is_named(name):
    before = {"q_proj.weight": random(40, 30), name: random(30, seed=2)}
    after = before | {"q_proj.weight": before["q_proj.weight"] + low_rank(40, 30, [1.0]).float()}
    after[name] = after[name] + 0.25
    with pytest.raises(LoratomyError, match=f"{name} changed, which LoRA cannot express"):
        between(before, after)
    found, record = between(before, after, ignore_modules=[name])
    assert list(found.modules) == ["q_proj"] and record.ignored == (name,)


def test_weights_that_do_not_correspond():
    before = {"q_proj.weight": random(40, 30), "k_proj.weight": random(10, 30)}
    with pytest.raises(LoratomyError, match=r"the merged model has no k_proj.weight"):
        between(before, {"q_proj.weight": before["q_proj.weight"]})
    with pytest.raises(LoratomyError, match=r"the base has no k_proj.weight"):
        between({"q_proj.weight": before["q_proj.weight"]}, before)
    with pytest.raises(LoratomyError, match=r"q_proj.weight has shape \(40, 30\) .* \(40, 31\)"):
        between(before, before | {"q_proj.weight": random(40, 31)})
    broken = before | {"q_proj.weight": before["q_proj.weight"] / 0}
    with pytest.raises(LoratomyError, match="q_proj holds NaN or infinite"):
        between(before, broken)


def test_the_seed_alone_decides_and_the_global_one_is_left():
    before = {"q_proj.weight": random(300, 200)}
    after = {"q_proj.weight": before["q_proj.weight"] + low_rank(300, 200, [1, 0.9]).float()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    one, other = (between(before, after, seed=3)[0].modules["q_proj"] for _ in range(2))
    assert torch.equal(one.a, other.a) and torch.equal(state, torch.get_rng_state())
