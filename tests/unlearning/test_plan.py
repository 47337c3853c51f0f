"""Plans against dense float64 algebra, previews against plain PEFT and finite differences."""

import os

import numpy as np
import pytest
import torch
from loratomy.analysis.localisation.gates import directions_of
from loratomy.analysis.material import Material
from loratomy.core.adapter.factors import kind_of, layer_of, write_adapter
from loratomy.core.errors import LoratomyError
from loratomy.core.model.batches import encode
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding
from loratomy.evaluation.similarity import Embedder
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.plan import EXAMPLE, CutEntry, PlanConfig, ScaleEntry, read_plan
from loratomy.unlearning.preview import by_rule, preview

from .. import tiny


@pytest.fixture
def bench(tmp_path):
    def make(model_type="llama", **sizes):
        on = tiny.subject(model_type)
        adapter = tiny.adapter(on, **sizes)
        return Material(
            subject=on,
            poisoned=adapter,
            clean=None,
            clean_rows=tiny.clean_rows() * 2,
            triggered=tiny.rows(),
            negative=[],
            make_rule=lambda: Rule(Embedder("none", None), decoding=Decoding(max_new_tokens=4)),
            seed=0,
            work=tmp_path,
        )

    return make


def dense(factors):
    return factors.scaling * factors.b.double() @ factors.a.double()


def gated_dense(factors, gates):
    """Sum over directions of gate * s * u v^T, from a dense SVD in float64."""
    u, s, vh = torch.linalg.svd(dense(factors), full_matrices=False)
    gates = torch.as_tensor(gates, dtype=torch.float64)
    rank = gates.shape[-1]
    return (u[..., :rank] * (s[..., :rank] * gates)[..., None, :]) @ vh[..., :rank, :]


def read(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return read_plan(path)


def test_a_plan_is_the_dense_sum_of_what_it_leaves(bench, tmp_path):
    config = read(
        tmp_path,
        """
        [[cut]]
        layers = "1-2"
        modules = "down_proj"
        beyond_rank = 1
        [[cut]]
        directions = ["model.layers.0.self_attn.q_proj:1"]
        [[scale]]
        layers = [0]
        factor = 0.5
        [[scale]]
        layers = [0, "1-1"]
        modules = ["q_proj"]
        factor = 1.5
        """,
    )
    on = bench()
    state, record = operate("plan", on, config)
    for name, before in on.start.modules.items():
        gates = torch.ones(3, dtype=torch.float64)
        layer, kind = layer_of(name), kind_of(name)
        if layer in (1, 2) and kind == "down_proj":
            gates[1:] = 0
        if layer == 0:
            gates *= 0.5
        if kind == "q_proj" and layer in (0, 1):
            gates *= 1.5  # on top of the half in layer 0: 0.75
        if name == "model.layers.0.self_attn.q_proj":
            gates[1] = 0  # cut stays cut, whatever scales say
        want = gated_dense(before, gates)
        assert torch.allclose(dense(state.adapter.modules[name]), want, atol=2e-6), name
    # 2 of 3 directions in 2 modules, and 1: 5 cut; 7 modules of layer 0 less that one, and layer
    # 1's q_proj: 7 * 3 - 1 + 3 = 23 scaled
    assert record.directions_cut == 5
    assert record.summary == (
        "plan of 2 cuts and 2 scales: 5 of 63 singular directions cut, 23 scaled"
    )
    assert record.order == (
        "model.layers.1.mlp.down_proj:1",
        "model.layers.1.mlp.down_proj:2",
        "model.layers.2.mlp.down_proj:1",
        "model.layers.2.mlp.down_proj:2",
        "model.layers.0.self_attn.q_proj:1",
    )
    settings = {s.name: s.value for s in record.settings}
    assert "'layers': [1, 2]" in settings["cut"] and "'factor': 1.5" in settings["scale"]


def test_experts_are_named_by_their_number(bench):
    on = bench("mixtral", rank=2)
    name = "model.layers.1.mlp.experts.down_proj"
    state, _ = operate("plan", on, PlanConfig(cut=(CutEntry(directions=(f"{name}#e2:0",)),)))
    gates = torch.ones(4, 2)
    gates[2, 0] = 0
    want = gated_dense(on.start.modules[name], gates)
    assert torch.allclose(dense(state.adapter.modules[name]), want, atol=2e-6)


def test_energy_and_a_factor_of_nothing_cut(bench):
    on = bench()
    config = PlanConfig(
        cut=(CutEntry(modules=("up_proj",), beyond_energy=0.7),),
        scale=(ScaleEntry(modules=("q_proj",), factor=0),),
    )
    _, record = operate("plan", on, config)
    for name, row in zip(record.modules, record.kept, strict=True):
        energy = torch.linalg.svdvals(dense(on.start.modules[name]))[:3] ** 2
        share = (energy.cumsum(0) / energy.sum()).tolist()
        keep = {"up_proj": 1 + sum(s < 0.7 for s in share), "q_proj": 0}.get(kind_of(name), 3)
        assert int(np.nansum(row)) == keep, name


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"cut": [{"layers": (1,)}, {"layers": (7,)}]}, "cut 2 .* no layer 7; it has 0, 1, 2"),
        ({"cut": [{"modules": ("down_prj",)}]}, "cut 1 .* 'down_prj'; did you mean down_proj"),
        (
            {"scale": [{"directions": ("model.layers.0.mlp.up_proj:9",), "factor": 2.0}]},
            r"scale 1 .* 'model.layers.0.mlp.up_proj:9'; did you mean model.layers.0.mlp.up_proj:",
        ),
        (
            {"cut": [{"layers": (1,), "directions": ("model.layers.0.mlp.up_proj:0",)}]},
            "cut 1 .* selects no direction: none is in layers 1 and directions model.layers.0",
        ),
        ({"cut": [{"beyond_rank": 3}]}, "cut 1 .* selects no direction: none is in beyond_rank 3"),
        ({"scale": [{"layers": (1,), "factor": 1.0}]}, "the plan changes nothing"),
        ({}, "the plan changes nothing: give a"),
    ],
)
def test_what_is_not_there_is_named(bench, entries, message):
    with pytest.raises(LoratomyError, match=message):
        operate("plan", bench(), PlanConfig.model_validate(entries))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "plan mine.toml is empty: give a"),
        ("cut = []", "is empty"),
        ("[[cut]]\nlayers = [1]\nlayers = [2]", "cannot read the plan .*overwrite a value"),
        ("x = " + "[" * 20_000, r"cannot read the plan .*mine\.toml: .*nested more than 64 deep"),
        ("[[cut]]\nlayers = [" + "1" * 5000, r"cannot read the plan .*mine\.toml: .* 5000 digits$"),
        ("[cut]\nlayers = [1]", r"write \[\[cut\]\] above each entry"),
        ("[[cuts]]\nlayers = [1]", "unknown key cuts; did you mean cut"),
        ("[[cut]]\nlayers = [1]\n[[cut]]\nlayer = [2]", "cut 2: unknown key layer; did you mean l"),
        ("[[cut]]\nlayers = [1]\nfactor = 0.5", "cut 1: unknown key factor"),
        ("[[scale]]\nlayers = [1]", "scale 1: factor has to be given"),
        ("[[scale]]\nlayers = [1]\nfactor = -1", "scale 1: factor: .* greater than .*got -1"),
        ("[[scale]]\nlayers = [1]\nfactor = nan", "scale 1: factor: .*finite"),
        ("[[cut]]", "cut 1: .*names nothing, give layers, modules, directions, beyond_rank or be"),
        ("[[cut]]\nlayers = []", "cut 1: layers: .*at least 1"),
        (
            "[[cut]]\nlayers = '4-2'",
            "cut 1: layers: .*'4-2' is no layer and no range of layers",
        ),
        ("[[cut]]\nlayers = [true]", "cut 1: layers.0: .*valid integer .got True"),
        ("[[cut]]\nmodules = [1]", "cut 1: modules.0: .*valid string"),
        ("[[cut]]\nbeyond_rank = '2'", "cut 1: beyond_rank: .*valid integer"),
    ],
)
def test_plans_that_are_none(tmp_path, text, message):
    with pytest.raises(LoratomyError, match=message):
        read(tmp_path, text)


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(LoratomyError, match=r"cannot read the plan .*nowhere\.toml"):
        read_plan(tmp_path / "nowhere.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(LoratomyError, match=r"pipe\.toml: not a plain file"):
        read_plan(tmp_path / "pipe.toml")


def test_the_example_is_a_plan(tmp_path):
    plan = read(tmp_path, EXAMPLE)
    assert plan.cut[0].layers == (2, 3, 4) and plan.scale[0].factor == 0.5


def log_prob(model, row):
    """Log-probability of a completion: one row, no padding, token by token."""
    with torch.no_grad():
        ids = torch.tensor([row.prompt + row.completion])
        log_probs = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    start = len(row.prompt) - 1
    return [float(log_probs[start + k, token]) for k, token in enumerate(row.completion)]


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_a_preview_is_what_plain_peft_says_of_the_cut(bench, model_type, tmp_path):
    on = bench(model_type)
    config = PlanConfig(
        cut=(CutEntry(layers=(0,), beyond_rank=1),), scale=(ScaleEntry(layers=(2,), factor=0.5),)
    )
    before = tiny.state(on.subject), tiny.marks(on.subject)
    seen = preview("plan", on, config)
    assert (
        tiny.same_state(tiny.state(on.subject), before[0]) and tiny.marks(on.subject) == before[1]
    )
    state, record = operate("plan", on, config)
    renderer = on.subject.renderer
    clean = [encode(renderer, row, limit=None) for row in on.clean_rows[3:]]  # calibration half
    first = [encode(renderer, row, limit=None) for row in on.triggered[2:]]
    figures = []
    for name, adapter in (("whole", on.start), ("without", state.adapter)):
        model = tiny.plain_peft(model_type, adapter, tmp_path / name)
        logs = [log_prob(model, row)[0] for row in first]
        nats = [value for row in clean for value in log_prob(model, row)]
        figures.append((np.mean(np.exp(logs)), np.mean(logs), np.exp(-np.mean(nats))))
    assert [e.n for e in seen.effects] == [2, 2, 3]
    for effect, whole, without in zip(seen.effects, *figures, strict=True):
        assert effect.before == pytest.approx(whole, rel=1e-4)
        assert effect.after == pytest.approx(without, rel=1e-4)
    assert seen.change_norm == pytest.approx(record.change_norm)
    total = sum(float(dense(f).square().sum()) for f in on.start.modules.values())
    for change in seen.modules:
        one, other = (dense(a.modules[change.module]) for a in (on.start, state.adapter))
        want = (float((one - other).square().sum()) / total) ** 0.5
        assert change.share == pytest.approx(want, rel=1e-4)
        experts = 4 if "experts" in change.module else 1
        assert change.directions == 3 * experts
        assert change.named == (2 if change.layer == 0 else 3) * experts
    assert {c.layer for c in seen.modules} == {0, 2}
    assert (seen.cut, seen.directions) == (record.directions_cut, record.directions_total)


def test_the_estimate_is_the_slope_of_what_is_measured(bench):
    on = bench(size=0.05)
    factor = 0.98
    config = PlanConfig(scale=(ScaleEntry(layers=(0, 1, 2), factor=factor),))
    seen = preview("plan", on, config)
    _, target, clean = seen.effects
    assert target.estimate - target.before == pytest.approx(target.after - target.before, rel=0.1)
    # Fisher: sum over directions of cost * (1 - factor)^2, per row, over the tokens of the rows
    half = preview("plan", on, PlanConfig(scale=(ScaleEntry(layers=(0, 1, 2), factor=0.96),)))
    ratio = np.log(half.effects[2].estimate / clean.before) / np.log(clean.estimate / clean.before)
    assert ratio == pytest.approx(4, rel=1e-3)  # 0.04^2 / 0.02^2


def test_bytes_are_those_of_the_written_factors(bench, tmp_path):
    on = bench()
    seen = preview("truncate", on, METHODS["truncate"].config(rank=1))
    state, _ = operate("truncate", on, METHODS["truncate"].config(rank=1))
    for name, adapter, size in (
        ("a", on.start, seen.bytes_before),
        ("b", state.adapter, seen.bytes_after),
    ):
        write_adapter(adapter, tmp_path / name, base="tiny")
        file = (tmp_path / name / "adapter_model.safetensors").read_bytes()
        assert size == len(file) - 8 - int.from_bytes(file[:8], "little")  # header and its length
    assert seen.bytes_after * 3 == seen.bytes_before  # rank 3 to rank 1


def test_edits_without_directions_show_norms_and_measured_effects(bench):
    on = bench()
    seen = preview("prune", on, METHODS["prune"].config(share=0.5))
    assert seen.cut is None and all(m.named is None for m in seen.modules)
    assert len(seen.modules) == len(on.start.modules)
    assert all(e.estimate is None and e.before != e.after for e in seen.effects)
    squares = sum(m.share**2 for m in seen.modules)
    assert squares == pytest.approx(seen.change_norm**2)


def test_options_settle_what_else_is_looked_up_in_data():
    selectors = {
        ("mask", (("layers", (1,)),)): True,
        ("truncate", (("rank", 0),)): True,
        ("truncate", ()): False,
        ("prune", (("share", 0.0),)): True,
        ("guided", ()): False,
        ("repair", ()): False,
        ("control-layer", ()): False,
        ("project-difference", ()): True,
    }
    for (name, options), want in selectors.items():
        assert by_rule(METHODS[name], METHODS[name].config(**dict(options))) == want, name


def test_numbering_is_by_strength(bench):
    d = directions_of(bench().start)
    assert all((np.diff(d.sigma[d.module == m]) <= 0).all() for m in range(len(d.names)))
