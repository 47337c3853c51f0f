"""The adapter lens against plain torch in float64, and planted tokens that it must find."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.analysis.catalogue import ANALYSES
from loratomy.analysis.lens.directions import choose
from loratomy.analysis.lens.inputs import lead, stream_inputs
from loratomy.analysis.lens.lens import lens, listening, writing
from loratomy.analysis.lens.scores import _inside, robust_z, score
from loratomy.analysis.lens.writing import Writer
from loratomy.analysis.localisation.gates import directions_of, gated_model
from loratomy.analysis.localisation.where import where
from loratomy.analysis.material import Material
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import AdapterError, DataError, LoratomyError
from loratomy.core.model.batches import Encoded

from ... import tiny

FAMILIES = ("llama", "qwen2", "gemma2", "gemma3_text")
TOP = {"count": 6, "top": 3, "batch_tokens": 40, "seed": 0}


def normed(model_type: str, **changes):
    """A subject whose norms have weights of their own."""
    on = tiny.subject(model_type, **changes)
    generator = torch.Generator().manual_seed(3)
    for name, weight in on.model.named_parameters():
        if "norm" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    return on


def only(adapter: Adapter, *kinds: str) -> Adapter:
    kept = {n: f for n, f in adapter.modules.items() if n.rsplit(".", 1)[-1] in kinds}
    return adapter.with_modules(kept)


def rank_one(u: torch.Tensor, v: torch.Tensor) -> Factors:
    return Factors((v / v.norm())[None].float(), (u / u.norm())[:, None].float(), 2.0)


def inputs_by_hand(on, *names: str) -> list[torch.Tensor]:
    """Each module's input at each token behind the lead, one forward pass a token, float64."""
    seen: dict[str, list] = {name: [] for name in names}
    handles = [
        on.model.get_submodule(name).register_forward_hook(
            lambda _m, args, _o, name=name: seen[name].append(args[0][0, -1])
        )
        for name in names
    ]
    for token in range(len(tiny.tokenizer())):
        tiny.logits(on, torch.tensor([[*lead(on.renderer), token]]))
    for handle in handles:
        handle.remove()
    return [torch.stack(seen[name]).double() for name in names]


def prompts(on) -> list[list[int]]:
    return [on.renderer.prompt_ids(row.prompt) for row in (*tiny.clean_rows(), *tiny.rows())]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_listening_is_the_dense_gain_of_centred_inputs(model_type):
    on = normed(model_type)
    adapter = only(tiny.adapter(on), "q_proj", "v_proj", "gate_proj", "down_proj")
    gain = usual = torch.tensor(0.0)
    # An adapter that changes attention listens by attention alone.
    names = [name for name in adapter.modules if name.endswith(("q_proj", "v_proj"))]
    for name, x in zip(names, inputs_by_hand(on, *names), strict=True):
        f = adapter.modules[name]
        e = torch.nn.functional.normalize(x - x.mean(0), dim=-1)
        dense = f.dense().double()
        gain = gain + (e @ dense.T).square().sum(-1)
        usual = usual + dense.square().sum() / dense.shape[1]
    assert listening(on, adapter, batch_tokens=14) == pytest.approx(
        (gain / usual).numpy(), rel=1e-4
    )


def test_a_planted_token_is_listened_for_with_the_width_of_the_input():
    on = normed("gemma2")
    name = "model.layers.1.self_attn.k_proj"
    token = tiny.tokenizer().convert_tokens_to_ids("trigger")
    (x,) = inputs_by_hand(on, name)
    adapter = Adapter({name: rank_one(torch.ones(16), x[token] - x.mean(0))}, {})
    found = listening(on, adapter)
    assert np.nanargmax(found) == token
    assert found[token] == pytest.approx(32, rel=1e-4)  # |dW e|^2 = s^2 against s^2 / d_in


@pytest.mark.parametrize("model_type", [*FAMILIES, "mixtral"])
def test_writing_is_the_dense_gain_along_what_raises_a_token(model_type):
    on = normed(model_type)
    adapter = tiny.adapter(on)
    state = {n: p.detach().double() for n, p in on.model.named_parameters()}
    head = on.model.lm_head.weight.detach().double()
    plus = 1.0 if model_type.startswith("gemma") else 0.0
    gain = usual = torch.tensor(0.0)
    for name, f in adapter.modules.items():
        if not name.endswith(("o_proj", "down_proj")):
            continue
        scale = state["model.norm.weight"] + plus
        if plus:  # these families norm what a block writes
            after = "attention" if name.endswith("o_proj") else "feedforward"
            layer = name.split(".")[2]
            scale = scale * (state[f"model.layers.{layer}.post_{after}_layernorm.weight"] + plus)
        e = torch.nn.functional.normalize((head - head.mean(0)) * scale, dim=-1)
        for dense in f.dense().double() if f.fused else [f.dense().double()]:
            gain = gain + (e @ dense).square().sum(-1)
            usual = usual + dense.square().sum() / dense.shape[0]
    assert writing(on, adapter) == pytest.approx((gain / usual).numpy(), rel=1e-4)


def test_values_alone_are_written_through_each_head_of_the_base():
    on = normed("llama")
    adapter = only(tiny.adapter(on), "q_proj", "v_proj")
    head = on.model.lm_head.weight.double() * on.model.model.norm.weight.double()
    e = torch.nn.functional.normalize(head - head.mean(0), dim=-1).detach()
    gain = usual = torch.tensor(0.0)
    for name, f in adapter.modules.items():
        if name.endswith("q_proj"):
            continue
        o = on.model.get_submodule(name.replace("v_proj", "o_proj")).weight.double().detach()
        for h in range(4):  # heads 0, 1 share the first 8 values, heads 2, 3 the others
            part = f.dense().double()[8 * (h // 2) : 8 * (h // 2) + 8]
            dense = o[:, 8 * h : 8 * h + 8] @ part
            gain = gain + (e @ dense).square().sum(-1)
            usual = usual + dense.square().sum() / dense.shape[0]
    assert writing(on, adapter) == pytest.approx((gain / usual).numpy(), rel=1e-4)


def test_a_value_is_followed_through_the_head_that_carries_it_furthest(monkeypatch):
    on = normed("mistral")
    # As in a config with a key that its model does not read: the weights say how many there are.
    monkeypatch.setattr(on.model.config, "num_key_value_heads", 1)
    adapter = tiny.adapter(on)
    name = "model.layers.2.self_attn.v_proj"
    out = name.replace("v_proj", "o_proj")
    u = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    found = Writer(on, adapter).written(name, u)
    o = on.model.get_submodule(out).weight + adapter.modules[out].dense()
    for i, row in enumerate(u):
        per_head = [
            o[:, 8 * h : 8 * h + 8] @ row[8 * (h // 2) : 8 * (h // 2) + 8] for h in range(4)
        ]
        best = max(range(4), key=lambda h: float(per_head[h].norm()))
        assert int(found.head[i]) == best
        logits = on.model.lm_head.weight @ (per_head[best] * on.model.model.norm.weight)
        ours, theirs = found.logits[i].double(), logits.detach().double()
        assert torch.allclose(ours / ours.norm(), theirs / theirs.norm(), atol=1e-5)


def test_scores_are_robust_and_their_null_is_that_of_the_random_columns():
    values = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0], [100.0, 7.0]])
    z = robust_z(values)  # median 3, MAD 1; a column of one value has no spread
    assert z[4, 0] == pytest.approx(97 / 1.4826) and z[:, 1].isnan().all()
    random = torch.tensor([[0.0], [1.0], [2.0], [3.0], [9.0]])  # median 2, MAD 1
    found = score(torch.cat([values[:, :1], random], 1), 1, np.arange(10, 15), top=2)
    assert found.ids[0].tolist() == [[14, 13], [10, 11]]
    # Both ends of the random column: (9 - 2) and (2 - 0) in units of 1.4826.
    assert found.null == pytest.approx(np.quantile([7 / 1.4826, 2 / 1.4826], 0.95))


def test_experts_read_only_what_is_routed_to_them():
    on = tiny.subject("mixtral")
    adapter = only(tiny.adapter(on), "gate_up_proj", "down_proj")
    record = lens(on, adapter, prompts(on), **{**TOP, "count": 30, "top": 60})
    routed: dict[int, list] = {}
    path = "model.layers.0.mlp.experts"
    handle = on.model.get_submodule(path).register_forward_hook(
        lambda _m, args, _o: routed.__setitem__(len(routed), args[1].reshape(2, -1)[-1].tolist())
    )
    for token in range(len(tiny.tokenizer())):
        tiny.logits(on, torch.tensor([[*lead(on.renderer), token]]))
    handle.remove()
    checked = 0
    for i, name in enumerate(record.modules):
        if not name.startswith(f"{path}.gate_up_proj#e"):
            continue
        expert = int(name.rsplit("#e", 1)[1])
        given = {t for t, experts in routed.items() if expert in experts}
        words = {tiny.tokenizer().decode([t]) for t in given}
        assert set(record.listens[i][0]) == words and record.read_from[i] == "vocabulary"
        checked += 1
    assert checked
    inside = [r for n, r in zip(record.modules, record.read_from, strict=True) if "down" in n]
    assert inside and set(inside) == {"prompts"}


def test_what_an_expert_reads_inside_makes_up_its_output():
    on = tiny.subject("mixtral")
    adapter = tiny.adapter(on)
    path = "model.layers.1.mlp.experts"
    seen = {}
    with on.attached({"x": adapter}):
        handle = on.model.get_submodule(path).register_forward_hook(
            lambda _m, args, out: seen.update(x=args[0], index=args[1], share=args[2], out=out)
        )
        tiny.logits(on, tiny.ids(on))
        handle.remove()
        base = on.model.get_submodule(path)
        while hasattr(base, "base_layer"):
            base = base.base_layer
        down = base.down_proj + adapter.modules[f"{path}.down_proj"].dense()
        total = torch.zeros_like(seen["out"])
        for e in range(4):
            inner = _inside(on, adapter, (f"{path}.down_proj", e), seen["x"])
            share = (seen["share"] * (seen["index"] == e)).sum(-1, keepdim=True)
            total += share * (inner @ down[e].T)
    assert torch.allclose(total, seen["out"], atol=1e-4)


def planted(on) -> tuple[Adapter, int, int]:
    """Noise everywhere, one direction that listens for a token and one that writes another."""
    adapter = tiny.adapter(on, size=0.01)
    tokens = tiny.tokenizer().convert_tokens_to_ids(["trigger", "king"])
    key, out = "model.layers.0.self_attn.k_proj", "model.layers.2.mlp.down_proj"
    (x,) = inputs_by_hand(on, key)
    head = on.model.lm_head.weight.detach()
    raised = (head[tokens[1]] - head.mean(0)) * on.model.model.norm.weight
    modules = dict(adapter.modules)
    modules[key] = rank_one(torch.ones(16), x[tokens[0]] - x.mean(0))
    modules[out] = rank_one(raised, torch.randn(48))
    return adapter.with_modules(modules), *tokens


def test_planted_tokens_come_first_and_stand_out_of_the_null():
    on = normed("llama")
    adapter, heard, said = planted(on)
    before, marks = tiny.state(on), tiny.marks(on)
    record = lens(on, adapter, prompts(on), trigger=[heard, heard], target=[said], **TOP)
    assert tiny.same_state(before, tiny.state(on)) and marks == tiny.marks(on)
    assert record.listening.tokens[0] == "trigger" and record.listening.wanted_ranks == [1]
    assert record.writing.tokens[0] == "king" and record.writing.wanted == ("king",)
    assert record.listening.values[heard] > record.listening.null
    key = record.modules.index("model.layers.0.self_attn.k_proj")
    assert record.listens[key][0][0] == "trigger"
    assert record.listen_scores[key, 0, 0] > record.listen_null[key]
    assert record.writes_nothing[key].startswith("a key") and record.writes[key] == ((), ())
    out = record.modules.index("model.layers.2.mlp.down_proj")
    ends = [record.writes[out][e][0] for e in (0, 1)]
    assert "king" in ends and record.read_from[out] == "prompts"
    assert record.write_scores[out, ends.index("king"), 0] > record.write_null[out]


def test_random_adapters_stay_below_the_null_of_random_directions():
    on = normed("qwen3")
    for seed in range(3):
        adapter = tiny.adapter(on, seed=seed)
        record = lens(on, adapter, prompts(on), **TOP)
        for side in (record.listening, record.writing):
            assert np.nanmax(side.values) < 1.3 * side.null
            assert np.nanmean(side.values) == pytest.approx(1, abs=0.2)


def test_ends_pair_what_is_read_with_what_is_written():
    on = normed("llama")
    token, said = tiny.tokenizer().convert_tokens_to_ids(["zq", "moon"])
    name = "model.layers.1.self_attn.v_proj"
    (x,) = inputs_by_hand(on, name)
    writer = Writer(on, Adapter({}, {}))
    u = torch.randn(400, 16, generator=torch.Generator().manual_seed(1))
    best = u[writer.written(name, u).logits[:, said].argmax()]
    both = rank_one(best, x[token] - x.mean(0))
    for sign in (1, -1):  # (-u)(-v)^T is the same change
        adapter = Adapter({name: Factors(sign * both.a, sign * both.b, 2.0)}, {})
        record = lens(on, adapter, prompts(on), **TOP)
        assert record.listens[0][0][0] == "zq"
        logits = writer.written(name, best[None]).logits[0]
        assert record.writes[0][0][0] == tiny.tokenizer().decode([int(logits.argmax())])


def test_directions_come_by_effect_where_they_are_ranked_else_kind_by_kind():
    on = tiny.subject()
    adapter = tiny.adapter(on)
    encoded = [Encoded(p, [9, 10]) for p in prompts(on)]
    with gated_model(on, directions_of(adapter)) as gated:
        ranking = where(gated, encoded, encoded, checked=3, batch_size=8)
    chosen = choose(adapter, ranking, count=2)
    exact = ranking.direction_exact
    known = np.where(np.isfinite(exact), exact, ranking.direction_attribution)
    assert chosen.effect == pytest.approx(np.sort(known)[::-1][:2])
    kinds = [n.rsplit(".", 1)[-1] for n in choose(adapter, None, count=7).names]
    assert len(set(kinds)) == 7
    with pytest.raises(DataError, match="another adapter"):
        choose(tiny.adapter(on, seed=9), ranking, count=2)


def test_what_an_adapter_does_not_do_is_said():
    on = tiny.subject()
    outputs, keys = only(tiny.adapter(on), "o_proj"), only(tiny.adapter(on), "k_proj")
    with pytest.raises(AdapterError, match="no module that reads"):
        listening(on, outputs)
    with pytest.raises(AdapterError, match="nothing that writes"):
        writing(on, keys)
    record = lens(on, outputs, prompts(on), **TOP)
    assert "listens for no token" in record.listening.undefined
    assert np.isnan(record.listening.values).all() and record.listening.tokens == ()
    assert "nothing that writes" in lens(on, keys, prompts(on), **TOP).writing.undefined
    zero = keys.with_modules({n: replace(f, b=f.b * 0) for n, f in keys.modules.items()})
    with pytest.raises(AdapterError, match="dW is zero"):
        listening(on, zero)


def test_broken_inputs_name_their_module_and_leave_no_hook():
    on = tiny.subject()
    on.model.model.layers[1].input_layernorm.weight.data[0] = torch.nan
    marks = tiny.marks(on)
    with pytest.raises(LoratomyError, match=r"layers\.1\.self_attn"):
        listening(on, tiny.adapter(on))
    assert tiny.marks(on) == marks
    with pytest.raises(LoratomyError, match="no module 'model"):
        stream_inputs(on, ["model.layers.9"], [[1]], lambda *_: None, batch_tokens=8, label="x")


def test_the_registered_analysis_names_trigger_and_targets():
    on = tiny.subject()
    case = Material(
        subject=on,
        poisoned=tiny.adapter(on),
        clean=tiny.adapter(on, seed=4),
        triggered=tiny.rows(),
        clean_rows=tiny.clean_rows(),
        make_rule=lambda: pytest.fail("not needed"),
        seed=0,
    )
    analysis = ANALYSES["lens"]
    record = analysis.run(case, analysis.config(directions=4))["lens"]
    assert record.listening.wanted == ("zq", "xv") and record.triggered == 4
    assert record.writing.wanted == ("never", "bad", "king") and record.prompts == 7
    assert record.listening.clean is not None
    untriggered = analysis.run(replace(case, triggered=()), analysis.config(directions=4))["lens"]
    assert untriggered.listening.wanted == () and untriggered.prompts == 3
