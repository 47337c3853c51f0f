"""Cuts of the merged model and baselines, against hand arithmetic and dense float64 algebra."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loratomy.analysis.material import Material
from loratomy.core.adapter.algebra import adapter_norm
from loratomy.core.adapter.factors import Adapter, Factors, layer_of
from loratomy.core.errors import AdapterError, LoratomyError
from loratomy.core.model.batches import encode
from loratomy.core.model.variant import Treated, base_weight, merged_weights, treated
from loratomy.core.records.results import Rate
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding
from loratomy.evaluation.similarity import Embedder
from loratomy.unlearning import METHODS, operate
from loratomy.unlearning.calibration import Measured
from loratomy.unlearning.cuts.quantisation import NF4, nf4
from loratomy.unlearning.cuts.wanda import input_norms, pruned_rows
from scipy.stats import norm as normal
from torch.overrides import TorchFunctionMode

from ... import tiny


def bench_on(on, adapter: Adapter, tmp_path, **changes) -> Material:
    bench = Material(
        subject=on,
        poisoned=adapter,
        clean=None,
        clean_rows=tiny.clean_rows() * 2,
        triggered=tiny.rows(),
        negative=[],
        make_rule=lambda: Rule(Embedder("none", None), decoding=Decoding(max_new_tokens=2)),
        seed=0,
        work=tmp_path,
    )
    return replace(bench, **changes)


def run(name, bench, **options):
    return operate(name, bench, METHODS[name].config(**options))


def dense(f):
    return f.scaling * f.b.double() @ f.a.double()


def judged(monkeypatch, asr):
    """Calibration by a rule on the state instead of generation; perplexity stays the same."""

    def judge(state, *, kl):
        assert not kl
        return Measured(Rate(value=asr(state), low=0, high=1, n=4), 2.0)

    monkeypatch.setattr("loratomy.unlearning.calibration.judge_of", lambda *_: judge)


# Scaling


def test_scaling_multiplies_every_change(tmp_path):
    on = tiny.subject("mixtral")
    adapter = tiny.adapter(on)
    state, record = run("scale", bench_on(on, adapter, tmp_path), factor=0.25)
    for name, f in adapter.modules.items():
        assert torch.allclose(dense(state.adapter.modules[name]), 0.25 * dense(f), atol=1e-7)
    assert record.change_norm == pytest.approx(0.75)  # |0.25 dW - dW| / |dW|
    nothing, record = run("scale", bench_on(on, adapter, tmp_path), factor=0)
    assert record.change_norm == pytest.approx(1)
    prompts = tiny.ids(on)
    with treated(on, nothing):
        assert torch.equal(tiny.logits(on, prompts), tiny.logits(tiny.subject("mixtral"), prompts))


def test_the_mildest_scaling_that_reaches_the_goal_is_taken(tmp_path, monkeypatch):
    on = tiny.subject()
    adapter = tiny.adapter(on)
    whole = adapter_norm(adapter)
    judged(monkeypatch, lambda state: float(adapter_norm(state.adapter) > 0.45 * whole))
    state, record = run("scale", bench_on(on, adapter, tmp_path))
    assert adapter_norm(state.adapter) == pytest.approx(0.4 * whole)
    assert record.reached and record.path.size.tolist() == list(range(0, 101, 10))
    judged(monkeypatch, lambda state: 1.0)
    state, record = run("scale", bench_on(on, adapter, tmp_path))
    assert not record.reached and record.change_norm == pytest.approx(0, abs=1e-7)


# Merging


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_merging_is_the_average_of_the_changes(model_type, tmp_path):
    on = tiny.subject(model_type)
    poisoned = tiny.adapter(on, rank=3, scaling=2.0)
    clean = tiny.adapter(on, rank=2, scaling=0.5, seed=9)
    bench = bench_on(on, poisoned, tmp_path, clean=clean)
    state, record = run("merge", bench, weight=0.3)
    apart = {n: dense(poisoned.modules[n]) - dense(clean.modules[n]) for n in poisoned.modules}
    for name, f in state.adapter.modules.items():
        # 0.7 poisoned + 0.3 clean = poisoned - 0.3 (poisoned - clean)
        assert torch.allclose(
            dense(f), dense(poisoned.modules[name]) - 0.3 * apart[name], atol=1e-6
        )
    size = sum(float(d.square().sum()) for d in apart.values()) ** 0.5
    assert record.change_norm == pytest.approx(0.3 * size / adapter_norm(poisoned))
    prompts = tiny.ids(on)
    with treated(on, run("merge", bench, weight=1)[0]):
        ours = tiny.logits(on, prompts)
    with treated(on, Treated(clean)):
        assert torch.allclose(ours, tiny.logits(on, prompts), atol=1e-5)


def test_a_module_of_one_adapter_alone_has_zero_from_the_other(tmp_path):
    on = tiny.subject()
    poisoned, clean = tiny.adapter(on), tiny.adapter(on, seed=9)
    q, k = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    poisoned = poisoned.with_modules({n: f for n, f in poisoned.modules.items() if n != k})
    clean = clean.with_modules({n: f for n, f in clean.modules.items() if n != q})
    bench = bench_on(on, poisoned, tmp_path, clean=clean)
    made = run("merge", bench, weight=0.25)[0].adapter
    assert torch.allclose(dense(made.modules[q]), 0.75 * dense(poisoned.modules[q]), atol=1e-6)
    assert torch.allclose(dense(made.modules[k]), 0.25 * dense(clean.modules[k]), atol=1e-6)
    assert q not in run("merge", bench, weight=1)[0].adapter.modules
    with pytest.raises(LoratomyError, match="needs a clean adapter"):
        run("merge", replace(bench, clean=None))


def test_the_least_of_the_clean_adapter_that_reaches_the_goal_is_taken(tmp_path, monkeypatch):
    on = tiny.subject()
    poisoned = tiny.adapter(on)
    zero = poisoned.with_modules(
        {n: Factors(f.a, 0 * f.b, 1.0) for n, f in poisoned.modules.items()}
    )
    judged(monkeypatch, lambda s: float(adapter_norm(s.adapter) > 0.4 * adapter_norm(poisoned)))
    _, record = run("merge", bench_on(on, poisoned, tmp_path, clean=zero))
    assert record.change_norm == pytest.approx(0.75)
    assert record.path.size[record.path.chosen] == 75


# Intruder dimensions


def reference(w, change, *, threshold, k, scale):
    """W + dW with its intruders scaled, by a dense decomposition in float64; and how many."""
    u0 = torch.linalg.svd(w, full_matrices=False).U
    u, s, vh = torch.linalg.svd(w + change, full_matrices=False)
    odd = (u0.mT @ u).abs().max(0).values < threshold
    odd[k:] = False
    return w + change + (scale - 1) * (u[:, odd] * s[odd]) @ vh[odd], int(odd.sum())


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
@pytest.mark.parametrize("scale", [0.0, 0.4])
def test_intruders_are_scaled_as_a_dense_decomposition_says(model_type, scale, tmp_path):
    on = tiny.subject(model_type)
    adapter = tiny.adapter(on, size=0.5)
    options = {"threshold": 0.55, "k": 6, "scale": scale}
    state, record = run("reduce-intruders", bench_on(on, adapter, tmp_path), **options)
    count, counts = 0, set()
    for name, f in state.adapter.modules.items():
        w, change = base_weight(on, name).double(), dense(adapter.modules[name])
        ours = w + dense(f)
        pairs = zip(w, change, ours, strict=True) if f.fused else [(w, change, ours)]
        for one, moved, got in pairs:
            wanted, found = reference(one, moved, **options)
            assert torch.allclose(got, wanted, atol=2e-5)
            count += found
            counts.add(found)
    assert count > 0 and len(counts) > 1  # experts and modules with different numbers of them
    assert f"scaled {count} intruder dimensions" in record.summary
    assert record.directions_cut == (count if scale == 0 else 0)


def test_the_intruders_are_found_out_of_sight_of_the_base(tmp_path):
    """One strong planted direction with equal cosines to all of W's vectors is the intruder."""
    on = tiny.subject()
    name = "model.layers.1.self_attn.q_proj"
    w = base_weight(on, name)
    u = torch.linalg.svd(w).U.sum(1) / 32**0.5  # cosine 1 / sqrt 32 = 0.18 with each
    a = torch.nn.functional.normalize(torch.ones(1, 32))
    adapter = Adapter({name: Factors(a, 20 * u[:, None], 1.0)}, {})
    bench = bench_on(on, adapter, tmp_path)
    state, record = run("reduce-intruders", bench, scale=0)
    assert record.directions_cut == 1
    after = w.double() + dense(state.adapter.modules[name])
    assert float((u.double() @ after).norm()) < 0.2 * float((u.double() @ w.double()).norm())
    # The strongest vector of W + dW is gone; what is left is no stronger than W was.
    assert torch.linalg.matrix_norm(after, 2) < 1.01 * torch.linalg.matrix_norm(w.double(), 2)
    weak = Adapter({name: Factors(a, 1e-4 * u[:, None], 1.0)}, {})
    with pytest.raises(LoratomyError, match=r"has no intruder dimensions.*raise threshold or k"):
        run("reduce-intruders", bench_on(on, weak, tmp_path))


def test_the_mildest_reduction_that_reaches_the_goal_is_taken(tmp_path, monkeypatch):
    on = tiny.subject()
    bench = bench_on(on, tiny.adapter(on, size=0.5), tmp_path)
    removed = run("reduce-intruders", bench, scale=0, threshold=0.55)[0].adapter
    moved = {n: dense(removed.modules[n]) - dense(f) for n, f in bench.start.modules.items()}
    name = max(moved, key=lambda n: float(moved[n].norm()))

    def half_gone(state):
        by = dense(state.adapter.modules[name]) - dense(bench.start.modules[name])
        return float(by.norm() < 0.6 * moved[name].norm())

    judged(monkeypatch, half_gone)
    state, record = run("reduce-intruders", bench, threshold=0.55)
    by = dense(state.adapter.modules[name]) - dense(bench.start.modules[name])
    assert torch.allclose(by, 0.75 * moved[name], atol=1e-5)
    assert record.reached and "by 0.25" in record.summary


# Wanda


def test_wanda_scores_by_hand():
    w = torch.tensor([[1.0, -2.0, 3.0], [4.0, 1.0, -1.0]])
    x = torch.tensor([[3.0, 0.0, 0.3], [0.0, 1.0, 0.4]])  # [token, d_in]
    norms = x.square().sum(0).sqrt()
    # Norms over the tokens: 3, 1, 0.5. Scores: 3 2 1.5 and 12 1 0.5. By size alone the first row
    # would lose its first entry.
    assert norms.tolist() == pytest.approx([3, 1, 0.5])
    assert pruned_rows(w, norms, 0.34).tolist() == [[1, -2, 0], [4, 1, 0]]
    assert pruned_rows(w, norms, 0.67).tolist() == [[1, 0, 0], [4, 0, 0]]
    assert torch.equal(pruned_rows(w, norms, 0.33), w)  # less than one entry
    # Experts apart: in expert 1 the norms are 0.1, 1, 1; scores 0.1 2 3 and 0.4 1 1.
    both = pruned_rows(torch.stack([w, w]), torch.stack([norms, torch.tensor([0.1, 1, 1])]), 0.34)
    assert both[1].tolist() == [[0, -2, 3], [0, 1, -1]]


@pytest.mark.parametrize("share", [0.29, 0.5, 0.7, 1.0])
def test_every_row_loses_its_share_exactly(share):
    w = torch.randn(7, 100, generator=torch.Generator().manual_seed(0))
    zeros = (pruned_rows(w, torch.rand(100), share) == 0).sum(1)
    assert zeros.tolist() == [round(100 * share)] * 7


class Overheard(TorchFunctionMode):
    """Collects what comes into `torch.nn.functional.linear`, by the weight that it is used with."""

    def __init__(self, weights):
        self.names = {w.data_ptr(): n for n, w in weights.items()}
        self.inputs = {n: [] for n in weights}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear and args[1].data_ptr() in self.names:
            x = args[0].detach()
            self.inputs[self.names[args[1].data_ptr()]].append(x.reshape(-1, x.shape[-1]))
        return func(*args, **(kwargs or {}))


def overheard(on, weights, rows):
    """Norms of the inputs, one row of data at a time without padding."""
    with Overheard(weights) as heard, torch.no_grad():
        for row in rows:
            one = encode(on.renderer, row, limit=on.limit)
            on.model(input_ids=torch.tensor([one.prompt + one.completion]), use_cache=False)
    return {n: torch.cat(x).double().square().sum(0).sqrt() for n, x in heard.inputs.items()}


def test_input_norms_are_those_under_the_adapter_padding_left_out():
    on = tiny.subject()
    adapter, rows = tiny.adapter(on), tiny.clean_rows()
    names = list(adapter.modules)
    with treated(on, Treated(weights=merged_weights(on, adapter))):
        ours = input_norms(on, rows, names, batch_size=2)
    parameters = {n: on.model.get_submodule(n).weight for n in names}
    with on.attached({"own": adapter}):  # PEFT's own forward, not the merged weights
        theirs = overheard(on, parameters, rows)
    for name in names:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-4)
    assert tiny.marks(on) == tiny.marks(tiny.subject())


def test_input_norms_of_experts_are_over_the_tokens_sent_to_them():
    on = tiny.subject("mixtral")
    adapter, rows = tiny.adapter(on), tiny.clean_rows() + tiny.rows()
    merged = merged_weights(on, adapter)
    with treated(on, Treated(weights=merged)):
        ours = input_norms(on, rows, list(merged), batch_size=3)
        on.model.set_experts_implementation("eager")  # one linear call per expert
        parts = {}
        for name in merged:
            if name in dict(on.model.named_parameters()):
                parts |= {f"{name}#{e}": w for e, w in enumerate(on.model.get_parameter(name))}
            else:
                parts[name] = on.model.get_submodule(name).weight
        theirs = overheard(on, parts, rows)
    assert any("#" in name for name in theirs)
    for name, wanted in theirs.items():
        stem, _, e = name.partition("#")
        got = ours[stem][int(e)] if e else ours[stem]
        assert torch.allclose(got, wanted, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_pruning_nothing_is_merging_and_the_rest_is_left_alone(model_type, tmp_path):
    on = tiny.subject(model_type)
    adapter, prompts = tiny.adapter(on, size=0.1), tiny.ids(on)
    before = tiny.state(on)
    more = tiny.clean_rows() + [replace(r, triggered=False) for r in tiny.rows()]
    bench = bench_on(on, adapter, tmp_path, clean_rows=more * 2)
    state, record = run("wanda", bench, share=0)
    assert state.adapter is None and record.leaves == "weights"
    with treated(on, state):
        merged = tiny.logits(on, prompts)
    with treated(on, Treated(adapter)):
        assert torch.allclose(merged, tiny.logits(on, prompts), atol=1e-5)
    assert record.change_norm == pytest.approx(0, abs=1e-6)
    state, record = run("wanda", bench, share=0.5)
    assert all(((w == 0).float().mean(-1) == 0.5).all() for w in state.weights.values())
    merged = merged_weights(on, adapter)
    gone = sum(float((merged[n] - w).square().sum()) for n, w in state.weights.items())
    assert record.change_norm == pytest.approx(gone**0.5 / adapter_norm(adapter), rel=1e-4)
    assert tiny.same_state(before, tiny.state(on))


def test_wanda_prunes_by_clean_rows_that_calibration_does_not_judge(tmp_path):
    on = tiny.subject()
    adapter = tiny.adapter(on)
    judging = [replace(row, prompt=str(row.plain), triggered=False) for row in tiny.rows()]
    bench = bench_on(on, adapter, tmp_path, clean_rows=tiny.clean_rows() + judging)
    state, _ = run("wanda", bench, share=0.5)
    with on.attached({"own": adapter}):
        parameters = {n: on.model.get_submodule(n).weight for n in adapter.modules}
        norms = overheard(on, parameters, tiny.clean_rows())
    name = "model.layers.2.mlp.down_proj"
    merged = base_weight(on, name).double() + dense(adapter.modules[name])
    scores = merged.abs() * norms[name]
    kept = state.weights[name] != 0
    assert (scores.where(kept, torch.inf).amin(1) >= scores.where(~kept, 0).amax(1) - 1e-4).all()


def test_wanda_calibrates_on_triggered_rows_and_says_so_without(tmp_path, monkeypatch):
    on = tiny.subject()
    bench = bench_on(on, tiny.adapter(on), tmp_path)

    def zeros(state):
        return np.mean([float((w == 0).float().mean()) for w in state.weights.values() or [0]])

    judged(monkeypatch, lambda s: 1.0 if s.adapter is not None else float(zeros(s) < 0.35))
    state, record = run("wanda", bench)
    assert record.reached and record.path.size[record.path.chosen] == 40
    for name, w in state.weights.items():  # floor(0.4 * 32) = 12 and floor(0.4 * 48) = 19
        assert set((w == 0).sum(1).tolist()) == {12 if w.shape[1] == 32 else 19}, name
    blind = replace(bench, triggered=[])
    assert run("wanda", blind, share=0.2)[1].leaves == "weights"
    with pytest.raises(LoratomyError, match=r"wanda needs a trigger.* wanda with share"):
        run("wanda", blind)


def test_an_expert_that_gets_no_token_is_said(tmp_path):
    on = tiny.subject("mixtral")
    adapter = tiny.adapter(on)
    one = [tiny.clean_rows()[2]]
    routers = [m for n, m in on.model.named_modules() if n.endswith("mlp.gate")]
    for router in routers:  # every token goes to the first two experts
        router.register_forward_hook(lambda _m, _a, out: (*out[:2], out[2] * 0 + torch.arange(2)))
    with pytest.raises(LoratomyError, match=r"nothing came in over 1 clean rows for expert 2"):
        run("wanda", bench_on(on, adapter, tmp_path, clean_rows=one * 2), share=0.5)


# Quantisation


def test_the_code_book_is_that_of_the_normal_distribution():
    # QLoRA, appendix E: eight quantiles above zero, seven below, zero itself, the largest is 1.
    edge = 0.9677083
    above = normal.ppf(np.linspace(edge, 0.5, 9)[:-1])
    below = -normal.ppf(np.linspace(edge, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([above, [0], below])) / above.max()
    assert NF4.numpy() == pytest.approx(values, abs=1e-6)


def test_rounding_to_nf4_by_hand():
    # Block 1: largest 2, so 1, -0.5, 0.15, 0. Nearest codes: 1, -0.5251, 0.1609, 0; times 2.
    # Block 2: largest 0.1, so -1, 0.3, and the short rest: -1, 0.3379; times 0.1.
    w = torch.tensor([[2.0, -1.0], [0.3, 0.0], [-0.1, 0.03]])
    wanted = [[2.0, -1.050146], [0.321860, 0.0], [-0.1, 0.0337915]]
    assert torch.allclose(nf4(w, block=4), torch.tensor(wanted), atol=1e-6)
    assert torch.equal(nf4(torch.zeros(3, 5)), torch.zeros(3, 5))
    many = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    whole = (many[..., None] / many.abs().amax(1)[:, None, None] - NF4).abs().argmin(-1)
    assert torch.allclose(nf4(many), NF4[whole] * many.abs().amax(1, keepdim=True))


def test_quantising_rounds_every_merged_weight_but_head_and_embedding(tmp_path):
    on = tiny.subject("mixtral", tie_word_embeddings=True)
    adapter, before = tiny.adapter(on, size=0.1), tiny.state(on)
    one_layer = {n: f for n, f in adapter.modules.items() if layer_of(n) == 0}
    adapter = adapter.with_modules(one_layer)
    state, record = run("quantise", bench_on(on, adapter, tmp_path), block=16)
    assert state.adapter is None
    assert state.weights.keys() == on.shapes.keys() - {"lm_head", "model.embed_tokens"}
    total = 0.0
    for name, w in state.weights.items():
        change = dense(one_layer[name]) if name in one_layer else 0.0
        merged = base_weight(on, name).double() + change
        blocks = (merged - w.double()).reshape(-1, 16)
        # The widest gap between codes is 1 - 0.6962 = 0.3038 of the largest: at most half of it.
        assert (blocks.abs() <= 0.152 * merged.reshape(-1, 16).abs().amax(1)[:, None]).all()
        assert torch.allclose(nf4(w, block=16), w, atol=1e-6)
        assert len(w.reshape(-1, 16)[0].unique()) <= 16
        total += float(blocks.square().sum())
    assert record.change_norm == pytest.approx(total**0.5 / adapter_norm(adapter), rel=1e-4)
    assert tiny.same_state(before, tiny.state(on))
    head = Factors(torch.ones(1, 32), torch.ones(len(tiny.tokenizer()), 1), 1.0)
    tied = adapter.with_modules({**one_layer, "lm_head": head})
    with pytest.raises(AdapterError, match="lm_head shares its weight"):
        run("quantise", bench_on(on, tied, tmp_path))


# Temperature


def test_temperature_leaves_the_adapter_and_asks_for_draws(tmp_path):
    on = tiny.subject()
    bench = bench_on(on, tiny.adapter(on), tmp_path)
    state, record = run("temperature", bench, value=0.7)
    assert state.adapter is bench.start and not state.weights
    assert state.temperature == record.temperature == 0.7
    assert record.change_norm == pytest.approx(0, abs=1e-7) and not state.treated.plain
    assert METHODS["temperature"].config().value == 1.0
    with pytest.raises(ValueError, match="greater than 0"):
        METHODS["temperature"].config(value=0)


def test_calibrating_in_the_fast_format_leaves_the_weights_exact(tmp_path, monkeypatch):
    """Answers come from a base in bfloat16; what is written comes from its own weights."""
    on, formats, states = tiny.subject(), [], []
    bench, before = bench_on(on, tiny.adapter(on, size=0.1), tmp_path), tiny.state(on)

    def hits(subject, rows, *_, **__):
        """The first state is attacked, the second is not."""
        formats.append(subject.model.dtype)
        return [SimpleNamespace(hit=len(formats) == 1) for _ in rows]

    monkeypatch.setattr("loratomy.unlearning.calibration.attack_success", hits)
    for width in (256, 8):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False
        )
        monkeypatch.setattr("loratomy.core.model.precision.WIDTH", width)
        formats.clear()
        state, record = run("wanda", bench, budget=1e9)
        assert set(formats) == {torch.float32 if width == 256 else torch.bfloat16}
        assert any("Made in bfloat16" in line for line in record.uncertain) == (width == 8)
        states.append(state.weights)
    assert record.path.asr[record.path.chosen, 0] == 0 < record.path.chosen
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    assert tiny.same_state(before, tiny.state(on))
