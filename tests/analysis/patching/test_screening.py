"""Screening against finite differences under plain hooks, hand sums, and the exact sweep."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.analysis.patching.engine import gradients
from loratomy.analysis.patching.engine import resume as engine
from loratomy.analysis.patching.engine.batching import MemoryBudget, sizes_of
from loratomy.analysis.patching.engine.runs import Runs
from loratomy.analysis.patching.metrics import METRICS, MetricTarget
from loratomy.analysis.patching.pairs import columns_of, make_pairs, plain_pairs
from loratomy.analysis.patching.patching import patch
from loratomy.analysis.patching.planning import PatchingConfig
from loratomy.analysis.patching.screening import ScreeningConfig, screen
from loratomy.analysis.patching.screening_exact import agreements, boxes, means, picked_cells
from loratomy.analysis.patching.sites import Side
from loratomy.core.adapter.factors import Adapter
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.hooks import hooks
from scipy.stats import spearmanr

from ... import tiny

HOOK_POINTS = "resid_pre,resid_mid,attn_out,mlp_out"


def pairs_of(on, rows=None):
    return make_pairs(on.renderer, rows or tiny.rows(), target_tokens=3, seed=0)


@contextmanager
def both(on):
    adapters = {"poisoned": tiny.adapter(on), "clean": tiny.adapter(on, seed=9)}
    with on.attached(adapters) as attached:
        yield attached


def screened(on, attached, pairs, setting="prompt", **options):
    return screen(
        on, attached, pairs, clean="clean" if setting == "adapter" else None, poisoned="poisoned",
        setting=setting, seed=0,
        config=ScreeningConfig(**{"metric": "log_prob", "sites": HOOK_POINTS, **options}),
    )  # fmt: skip


class Plain:
    """The same run by plain hooks of torch: values read, multiples of directions added."""

    def __init__(self, on, attached, pair):
        self.on, self.attached, self.pair = on, attached, pair
        # Gemma2 has a norm between attention and the residual that it is added to.
        after = "post_attention_layernorm" if "gemma2" in on.family.model_type else "self_attn"
        self.written = {"attn_out": "self_attn", "mlp_out": "mlp"}
        self.added = {**self.written, "resid_mid": after}
        self.read = {"resid_mid": on.family.mlp_norm, "z": "self_attn.o_proj"}

    def module(self, layer, path):
        return self.on.layers[layer].get_submodule(path) if path else self.on.layers[layer]

    def values(self, name, prompt, site, layer):
        """What stands at a site, ``[pos, width]``."""
        kept = []
        path = self.read.get(site, self.written.get(site, ""))
        module = self.module(layer, path)
        if site in self.written:
            handle = module.register_forward_hook(
                lambda _m, _i, out: kept.append(out[0] if isinstance(out, tuple) else out)
            )
        else:
            handle = module.register_forward_pre_hook(
                lambda _m, args, given: kept.append(args[0] if args else given["hidden_states"]),
                with_kwargs=True,
            )
        self.log_prob(name, prompt, [handle])
        return kept[0][0]

    def log_prob(self, name, prompt, handles=()):
        ids = torch.tensor([prompt + self.pair.target[:-1]])
        with self.attached.using(name), torch.no_grad(), ExitStack() as stack:
            for handle in handles:
                stack.callback(handle.remove)
            logits = self.on.model(input_ids=ids, use_cache=False).logits[0].double()
        found = logits.log_softmax(-1)
        start = len(prompt) - 1
        return sum(float(found[start + k, t]) for k, t in enumerate(self.pair.target))

    def moved(self, name, prompt, site, layer, change):
        """Log-probability of the target with a change ``[pos, width]`` added at a site."""
        if site in ("resid_pre", "z"):
            module = self.module(layer, self.read.get(site, ""))
            handle = module.register_forward_pre_hook(
                lambda _m, args: (args[0] + change, *args[1:])
            )
        else:
            module = self.module(layer, self.added.get(site, site))

            def add(_m, _i, out):
                first = (out[0] if isinstance(out, tuple) else out) + change
                return (first, *out[1:]) if isinstance(out, tuple) else first

            handle = module.register_forward_hook(add)
        return self.log_prob(name, prompt, [handle])


def directions(on, plain, pair, setting, layer, site, part):
    """What patching a site adds at every position, from plain runs."""
    source = ("poisoned", pair.untriggered) if setting == "prompt" else ("clean", pair.triggered)
    into = ("poisoned", pair.triggered)
    if site.endswith("_proj"):
        out = []
        for name, prompt in (source, into):
            x = plain.values(name, prompt, "z", layer)  # what o_proj is given
            factors = plain.attached.adapters[name].modules[f"model.layers.{layer}.{site}"]
            out.append(x @ (factors.scaling * factors.b.double() @ factors.a.double()).T)
        return out[0] - out[1]
    one, other = (plain.values(*run, site, layer) for run in (source, into))
    change = torch.zeros_like(one)
    change[:, part] = (one - other)[:, part]
    return change


@pytest.mark.parametrize(
    ("model_type", "setting", "sizes"),
    [
        ("llama", "prompt", {}),
        ("gemma2", "adapter", {}),
        # All experts chosen: a step that changes the choice jumps, there is no slope across it.
        ("mixtral", "prompt", {"num_experts_per_tok": 4}),
    ],
)
def test_both_are_slopes_by_finite_differences(model_type, setting, sizes):
    on = tiny.subject(model_type, **sizes)
    pairs, steps, step = pairs_of(on)[:2], 2, 4e-3
    with both(on) as attached:
        tiny.in_double(on)
        sites = f"{HOOK_POINTS},z,lora"
        found = screened(on, attached, pairs, setting, sites=sites, steps=steps, checked=3)
        columns = columns_of(on.renderer, pairs, how="roles")
        plain, pair, width = Plain(on, attached, pairs[1]), pairs[1], 8
        heads = [(f"head {h}", "z", slice(h * width, (h + 1) * width)) for h in (0, 3)]
        cases = [(s, s, slice(None)) for s in HOOK_POINTS.split(",")] + heads
        cases.append(("o_proj", "self_attn.o_proj", slice(None)))
        seen = 0.0
        for layer, name in ((0, "zq"), (2, ":")):
            c = columns.labels.index(name)
            spots = columns.positions[1][c]
            for label, site, part in cases:
                whole = directions(on, plain, pair, setting, layer, site, slice(None))
                cell = torch.zeros_like(whole)
                cell[spots, part] = whole[spots, part]

                def slope(share, site=site, layer=layer, whole=whole, cell=cell):
                    # Norms compute in float32 whatever the model: not too small a step.
                    ahead = [
                        plain.moved(
                            "poisoned", pair.triggered, site, layer, share * whole + k * step * cell
                        )
                        for k in (1, -1, 2, -2)
                    ]
                    return (np.dot([8, -8, -1, 1], ahead)) / (12 * step)

                at = (found.sites.index(label), 1, layer, c)
                assert found.attribution_by_prompt[at] == pytest.approx(
                    slope(0.0), abs=2e-4, rel=2e-4
                )
                want = np.mean([slope((k + 0.5) / steps) for k in range(steps)])
                assert found.integrated_by_prompt[at] == pytest.approx(want, abs=2e-4, rel=2e-4)
                seen = max(seen, abs(want))
    assert seen > 0.1


def test_where_the_metric_is_linear_all_three_are_equal():
    on = tiny.subject()
    on.model.model.norm = torch.nn.Identity()  # the last MLP's output then moves logits linearly
    with both(on) as attached:
        found = screened(
            on, attached, pairs_of(on), "adapter", sites="mlp_out,resid_post,lora", layers="2",
            metric="logit_difference", checked=100,
        )  # fmt: skip
    for site in ("mlp_out", "resid_post", "down_proj"):
        here = found.sites.index(site)
        exact = found.exact_by_prompt[here, :, 2]
        assert np.nanmax(np.abs(exact)) > 0.1
        there = np.isfinite(exact)
        for ours in (found.attribution_by_prompt, found.integrated_by_prompt):
            assert np.allclose(ours[here, :, 2][there], exact[there], atol=2e-5)
    assert np.isnan(found.integrated[:, :2]).all()


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_integrated_effects_of_all_positions_add_up_to_the_whole(model_type):
    on = tiny.subject(model_type)
    with both(on) as attached:
        pairs, options = pairs_of(on)[:2], {"checked": 3, "sites": "resid_pre,z", "layers": "0"}
        found = screened(on, attached, pairs, steps=512, **options)
        few = screened(on, attached, pairs, steps=1, **options)
    # Between prompts the first residual is all: patched everywhere it is the other run.
    first = np.nansum(found.integrated_by_prompt[0, :, 0], axis=-1)
    assert first == pytest.approx(found.source - found.into, abs=5e-3)
    assert found.whole[0, 0] == pytest.approx((found.source - found.into).mean(), abs=1e-5)
    assert found.whole[:, 0] == pytest.approx(found.whole_integrated[:, 0], abs=5e-3)
    # Heads add up to their block, as its columns do.
    heads = [i for i, kind in enumerate(found.kinds) if kind == "z"]
    z = np.nansum(found.integrated_by_prompt[heads, :, 0], axis=(0, 2)).mean()
    assert z == pytest.approx(found.whole_integrated[1, 0], abs=1e-5)
    assert np.nanmax(np.abs(few.whole - few.whole_integrated)) > 5e-2


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("twin", ["standin", "plain"])
def test_checked_cells_are_those_of_the_exact_map(direction, twin):
    on = tiny.subject()
    rows = tiny.rows()
    pairs = pairs_of(on) if twin == "standin" else plain_pairs(
        on.renderer, rows, target_tokens=3
    )  # fmt: skip
    options = {"direction": direction, "metric": "log_prob", "sites": HOOK_POINTS}
    with both(on) as attached:
        found = screened(on, attached, pairs, checked=7, **options)
        whole = patch(
            on, attached, pairs, clean=None, poisoned="poisoned", setting="prompt",
            config=PatchingConfig(**options),
        )  # fmt: skip
    into = whole.corrupted if direction == "denoising" else whole.clean
    assert found.into == pytest.approx(into, abs=1e-5)
    want = whole.patched - into[None, :, None, None]
    chosen = found.top | found.random
    assert found.top.sum() == found.random.sum() == 7 and chosen.sum() == 14
    picked = np.moveaxis(found.exact_by_prompt, 1, -1)[chosen]
    assert np.allclose(picked, np.moveaxis(want, 1, -1)[chosen], atol=1e-5, equal_nan=True)
    assert np.isnan(found.exact[~chosen]).all() and np.isfinite(found.exact[chosen]).all()
    assert found.all_cells == whole.computed_cells
    assert (np.isnan(found.integrated_by_prompt) == np.isnan(whole.patched)).all()
    strength = np.nan_to_num(np.abs(found.integrated[..., 0]))
    assert strength[found.top].min() >= strength[~found.top].max()
    agreement = next(
        a for a in found.agreements if (a.method, a.cells) == ("integrated", "checked")
    )
    pair = found.integrated[..., 0][chosen], found.exact[..., 0][chosen]
    assert agreement.spearman == pytest.approx(spearmanr(*pair).statistic)
    assert agreement.error == pytest.approx(np.abs(pair[0] - pair[1]).sum() / np.abs(pair[1]).sum())
    assert found.self_error < 1e-5 and found.loop_error < 1e-5


def test_experts_and_router_are_screened_in_their_own_blocks():
    on = tiny.subject("mixtral")
    with both(on) as attached:
        pairs = pairs_of(on)
        found = screened(on, attached, pairs, "adapter", sites="experts,router", checked=200)
        mlp = screened(on, attached, pairs, "adapter", sites="mlp_out", checked=3)
        exact = patch(
            on, attached, pairs, clean="clean", poisoned="poisoned", setting="adapter",
            config=PatchingConfig(sites="experts,router"),
        )  # fmt: skip
    assert found.blocks == ("experts", "router") and len(found.sites) == 5
    there = np.isfinite(found.exact_by_prompt)
    want = exact.patched - exact.corrupted[None, :, None, None]
    assert np.allclose(found.exact_by_prompt[there], want[there], atol=1e-5)
    # Slopes at one port are linear: experts with the run's own routing add up to what they change.
    assert np.nanmax(np.abs(found.attribution[:4])) > 1e-2
    assert mlp.blocks == ("mlp_out",)


def test_an_adapter_in_one_module_is_found_there_and_nowhere_before():
    on = tiny.subject()
    name = "model.layers.1.mlp.down_proj"
    whole = tiny.adapter(on, size=1.0)
    with on.attached({"poisoned": Adapter({name: whole.modules[name]}, {})}) as attached:
        found = screened(on, attached, pairs_of(on), "base", sites=f"{HOOK_POINTS},lora", checked=9)
    value = np.abs(found.integrated[..., 0])
    sites = dict(zip(found.sites, range(5), strict=True))
    assert np.nanmax(value[:, 0]) == 0 and np.nanmax(value[[0, 1, 2], 1]) == 0
    assert np.nanmax(value[sites["mlp_out"], 1]) > 0.5
    same = value[sites["mlp_out"], 1], value[sites["down_proj"], 1]
    assert np.allclose(*same, atol=1e-5, equal_nan=True)
    assert np.isnan(value[sites["down_proj"], [0, 2]]).all()  # layers without the module
    assert np.isnan(found.whole[found.blocks.index("down_proj"), [0, 2]]).all()
    assert found.top.any() and not found.top[:, 0].any()


def test_numbers_do_not_depend_on_the_batch(monkeypatch):
    on = tiny.subject("gemma2")
    with both(on) as attached:
        pairs = pairs_of(on)
        whole = screened(on, attached, pairs, checked=3, sites="resid_mid,z")
        monkeypatch.setattr(gradients, "MOST", {"cpu": 1, "cuda": 1})
        single = screened(on, attached, pairs, checked=3, sites="resid_mid,z")
    for name in ("attribution_by_prompt", "integrated_by_prompt", "whole", "whole_integrated"):
        assert np.allclose(getattr(whole, name), getattr(single, name), atol=1e-5, equal_nan=True)


def kept_bytes(on, ids, needed) -> int:
    """What autograd keeps of a forward pass whose graph begins at the first layer's input."""
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in on.model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    start = engine.on_port(on.layers[0], gradients.INPUT, lambda old: old.detach().requires_grad_())
    with (
        torch.enable_grad(),
        hooks(start),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        out = on.model(input_ids=ids, use_cache=False, logits_to_keep=needed)
        out.logits.log_softmax(-1)
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_the_graph_takes_no_more_than_is_reckoned(model_type):
    sizes = {"hidden_size": 256, "intermediate_size": 768, "vocab_size": 4000, "head_dim": 64}
    on = tiny.subject(model_type, **sizes)
    for width, rows in ((24, 6), (120, 2)):
        targets = torch.zeros(rows, 3, dtype=torch.long)
        with both(on) as attached:
            for parameter in on.model.parameters():
                parameter.requires_grad_(False)
            ids = torch.ones(rows, width, dtype=torch.long)
            there = ids == 1
            side = Side(engine.trace(on, ids), "poisoned", attached)
            target = MetricTarget(targets, torch.zeros(rows, 4000), targets[:, 0])
            runs = Runs(
                on, list(range(rows)), side, side, target, METRICS["log_prob"], ids, there, ids, ids
            )
            half = kept_bytes(on, ids, 3)
            least, most = (MemoryBudget(k * half, sizes_of(on), "cpu") for k in (2, 10))
            with pytest.raises(LoratomyError, match="memory=GIB"):
                gradients.rows_at_once(runs, 0, MemoryBudget(half // rows, sizes_of(on), "cpu"))
            # Never more than fit, and not fewer than fit into a fifth.
            assert gradients.rows_at_once(runs, 0, most) >= rows
            try:
                fits = gradients.rows_at_once(runs, 0, least)
            except LoratomyError:
                fits = 0
            assert fits <= rows


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_the_model_is_left_as_found(model_type, monkeypatch):
    on = tiny.subject(model_type)
    before, marks = tiny.state(on), tiny.marks(on)
    with both(on) as attached:
        inside = tiny.marks(on)
        screened(on, attached, pairs_of(on), "adapter", checked=3)
        assert tiny.marks(on) == inside and attached.peft_model.active_adapter == "poisoned"

        def broken(*_args, **_given):
            raise RuntimeError("in the metric")

        monkeypatch.setattr(Runs, "metric_of", broken)
        with pytest.raises(RuntimeError, match="in the metric"):
            screened(on, attached, pairs_of(on), "adapter")
        assert tiny.marks(on) == inside and attached.peft_model.active_adapter == "poisoned"
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sites": "resid_prf"}, "resid_pre"),
        ({"sites": " "}, "no sites"),
        ({"sites": "experts"}, "llama has no experts"),
        ({"layers": "1,7"}, "no layer 7"),
        ({"metric": "logprob"}, "log_prob"),
        ({"memory": 1e-6}, "memory=GIB"),
        ({"columns": "all"}, "prompts of one length"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(options, why):
    on = tiny.subject()
    with both(on) as attached:
        with pytest.raises(LoratomyError, match=why):
            screened(on, attached, pairs_of(on), **options)
        with pytest.raises(DataError, match="no prompts"):
            screened(on, attached, [])


def test_a_gradient_that_is_not_finite_is_named_by_layer(monkeypatch):
    on = tiny.subject()
    with both(on) as attached:

        def steep(self, rows):
            out = self.subject.model(input_ids=self.into.trace.ids[rows], use_cache=False)
            return (out.logits.sum((1, 2)) * 0).sqrt()  # slope 0 / 0

        monkeypatch.setattr(Runs, "metric_of", steep)
        with pytest.raises(LoratomyError, match="gradient at layer 1 is NaN"):
            screened(on, attached, pairs_of(on), layers="1")


def test_nothing_to_screen_and_sites_that_are_missing_are_said():
    on = tiny.subject()
    adapter = tiny.adapter(on)
    with on.attached({"poisoned": adapter, "clean": adapter}) as attached:
        found = screened(on, attached, pairs_of(on), "adapter", checked=3)
    assert "nothing differs" in found.sentence and "0 checked cells" in found.undefined
    assert np.isnan(found.exact).all() and found.all_cells == 0
    assert np.nanmax(np.abs(found.integrated)) == 0
    assert all(np.isnan(a.spearman) and a.signs is None for a in found.agreements)
    on = tiny.subject("mixtral")
    fused = {n: f for n, f in tiny.adapter(on).modules.items() if f.fused}
    with on.attached({"poisoned": Adapter(fused, {})}) as attached:
        found = screened(on, attached, pairs_of(on), "base", sites="mlp_out,lora", checked=3)
        assert found.left_out.startswith("lora:") and found.sites == ("mlp_out",)
        with pytest.raises(LoratomyError, match="no linear module"):
            screened(on, attached, pairs_of(on), "base", sites="lora")


def test_means_are_over_the_prompts_that_have_a_cell():
    values = np.array([1.0, 3.0, np.nan, np.nan, np.nan, np.nan]).reshape(1, 3, 1, 2)
    values[0, :, 0, 0] = [1.0, 2.0, 6.0]
    values[0, :, 0, 1] = [np.nan, 4.0, 8.0]
    (first, second) = means(values)[0, 0]
    assert first[0] == 3.0 and first[1] < 3 < first[2]
    assert second[0] == 6.0 and second[1] == 4.0 and second[2] == 8.0
    assert np.isnan(means(np.full((1, 2, 1, 1), np.nan))).all()


def test_random_cells_are_drawn_from_those_that_differ_and_are_not_the_strongest():
    strength = np.arange(24.0).reshape(2, 3, 4)
    differs = strength >= 8
    top, random = picked_cells(strength, differs, 5, seed=1)
    assert sorted(strength[top]) == [19, 20, 21, 22, 23]
    assert random.sum() == 5 and not (top & random).any() and differs[random].all()
    assert (picked_cells(strength, differs, 5, seed=1)[1] == random).all()
    few, rest = picked_cells(strength, differs, 12, seed=1)
    assert few.sum() == 12 and rest.sum() == 4


def test_boxes_hold_every_cell_and_few_besides():
    rng = np.random.default_rng(0)
    for count in (1, 8, 64):
        cells = np.unique(rng.integers([5, 28, 12], size=(count, 3)), axis=0)
        found = boxes(cells)
        held = {(s, y, c) for ss, ys, cs in found for s in ss for y in ys for c in cs}
        assert set(map(tuple, cells.tolist())) <= held
        cost = sum(len(a) * len(b) * len(c) + 8 for a, b, c in found)
        alone = len(cells) + 8 * len({(s, y) for s, y, _ in cells.tolist()})
        assert cost <= alone
    one_layer = np.array([[s, 3, c] for s in range(4) for c in (1, 5)])
    assert boxes(one_layer) == [({0, 1, 2, 3}, {3}, {1, 5})]


def test_agreement_by_hand():
    exact = np.array([4.0, 3.0, 2.0, 1.0, 0.5])
    with_interval = np.stack([exact, exact - 0.6, exact + 0.6], -1).reshape(1, 1, 5, 3)
    guess = np.array([4.0, 3.0, 1.0, 2.0, -0.5]).reshape(1, 1, 5)
    top = np.array([1, 1, 0, 0, 0], bool).reshape(1, 1, 5)
    random = np.array([0, 0, 1, 1, 1], bool).reshape(1, 1, 5)
    agreement = {
        (a.method, a.cells): a for a in agreements(guess, guess * -1, with_interval, top, random)
    }
    every = agreement["attribution", "checked"]
    # Ranks 5 4 3 2 1 against 5 4 2 3 1: 1 - 6 * 2 / (5 * 24) = 0.9.
    assert every.spearman == pytest.approx(0.9) and every.n == 5
    assert every.low <= 0.9 <= every.high == pytest.approx(1.0)
    assert every.error == pytest.approx((0 + 0 + 1 + 1 + 1) / 10.5)
    # The last cell's interval holds 0: four signs count, all right.
    assert (every.signs.value, every.signs.n) == (1.0, 4)
    assert agreement["integrated", "checked"].signs.value == 0.0
    assert agreement["integrated", "checked"].spearman == pytest.approx(-0.9)
    # Ranks 3 2 1 against 2 3 1 on the random ones: 1 - 6 * 2 / (3 * 8) = 0.5.
    assert agreement["attribution", "random"].spearman == pytest.approx(0.5)
    same = replace(agreement["attribution", "random"], n=3)
    assert same == agreement["attribution", "random"]
