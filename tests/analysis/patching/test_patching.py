"""The patching map against nnsight, cell by cell, and what must hold whatever the model."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.analysis.material import Material
from loratomy.analysis.patching.engine import batching as plan
from loratomy.analysis.patching.engine import resume as engine
from loratomy.analysis.patching.engine import runs, sweep
from loratomy.analysis.patching.pairs import columns_of, make_columns, make_pairs, plain_pairs
from loratomy.analysis.patching.patching import patch, patch_case
from loratomy.analysis.patching.planning import PatchingConfig, sweep_of
from loratomy.analysis.patching.sites import RESIDUALS, block_ports, kept_ports, places
from loratomy.core.adapter.factors import Adapter
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.rendering.prompts import Renderer

from ... import tiny

FAMILIES = ("llama", "mistral", "qwen2", "gemma2", "gemma3_text", "mixtral")
LORA = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")


def pairs_of(on, *, rows=None, tokens=3):
    return make_pairs(on.renderer, rows or tiny.rows(), target_tokens=tokens, seed=0)


@contextmanager
def both(on):
    adapters = {"poisoned": tiny.adapter(on), "clean": tiny.adapter(on, seed=9)}
    with on.attached(adapters) as attached:
        yield attached


def patched(on, attached, pairs, setting="prompt", **options):
    clean = {"prompt": "poisoned", "adapter": "clean", "base": None}[setting]
    return patch(
        on, attached, pairs, clean=clean, poisoned="poisoned", setting=setting,
        config=PatchingConfig(**options),
    )  # fmt: skip


def log_prob(logits: torch.Tensor, start: int, target: list[int]) -> float:
    """Log-probability of the target, token by token from the logits of the whole run."""
    log_probs = logits[0].double().log_softmax(-1)
    return sum(float(log_probs[start + k, token]) for k, token in enumerate(target))


class Reference:
    """The same experiment with nnsight: one trace for every cell."""

    def __init__(self, on, attached):
        from nnsight import NNsight

        self.on, self.attached = on, attached
        self.model = NNsight(attached.peft_model)
        self.layers = self.model.base_model.model.model.layers

    def at(self, layer: int, path: str):
        here = self.layers[layer]
        for part in path.split("."):
            here = getattr(here, part)
        return here

    def run(self, name: str | None, ids: torch.Tensor) -> tuple[torch.Tensor, list[dict]]:
        kept, norm = [], self.on.family.mlp_norm
        linear = "mixtral" not in self.on.family.model_type
        with self.attached.using(name), torch.no_grad(), self.model.trace(input_ids=ids):
            saved = list().save()
            for index in range(len(self.on.layers)):
                here = {"resid_pre": self.layers[index].input.clone()}
                here["self_attn.q_proj"] = self.at(index, "self_attn.q_proj").input.clone()
                here["z"] = self.at(index, "self_attn.o_proj").input.clone()
                here["attn_out"] = self.layers[index].self_attn.output[0].clone()
                here["resid_mid"] = self.at(index, norm).input.clone()
                if linear:
                    here["mlp.down_proj"] = self.at(index, "mlp.down_proj").input.clone()
                here["mlp_out"] = self.layers[index].mlp.output.clone()
                here["resid_post"] = self.layers[index].output.clone()
                saved.append(here)
            logits = self.model.output.logits.save()
        kept.extend({**here, "self_attn.o_proj": here["z"]} for here in saved)
        return logits, kept

    def patch(self, name, ids, site, layer, spot, value, part=slice(None)) -> torch.Tensor:
        here, norm = self.layers[layer], self.on.family.mlp_norm
        with self.attached.using(name), torch.no_grad(), self.model.trace(input_ids=ids):
            if site == "resid_pre":
                here.input[:, spot] = value[:, spot]
            if site == "resid_mid":
                self.at(layer, norm).input[:, spot] = value[:, spot]
            if site == "resid_post":
                here.output[:, spot] = value[:, spot]
            if site == "attn_out":
                here.self_attn.output[0][:, spot] = value[:, spot]
            if site == "mlp_out":
                here.mlp.output[:, spot] = value[:, spot]
            if site == "z":
                self.at(layer, "self_attn.o_proj").input[:, spot, part] = value[:, spot, part]
            if site in LORA:
                self.at(layer, site).output[:, spot] += value[:, spot]
            logits = self.model.output.logits.save()
        return logits


def cells_agree(on, attached, pairs, ours, setting, *, noising=False, site_of=None):
    """Every cell of a map against its own nnsight trace; returns the largest change."""
    nnsight, columns = Reference(on, attached), make_columns(on.renderer, pairs)
    clean = {"prompt": "poisoned", "adapter": "clean", "base": None}[setting]
    for p, pair in enumerate(pairs):
        runs = {}
        for role, name, prompt in (
            ("clean", clean, pair.untriggered if setting == "prompt" else pair.triggered),
            ("corrupted", "poisoned", pair.triggered),
        ):
            ids = torch.tensor([prompt + pair.target[:-1]])
            start = len(prompt) - 1
            runs[role] = (name, ids, start, *nnsight.run(name, ids))
        for role, stored in (("clean", ours.clean), ("corrupted", ours.corrupted)):
            _, _, start, logits, _ = runs[role]
            assert stored[p] == pytest.approx(log_prob(logits, start, pair.target), abs=1e-5)
        source, into = runs["clean"], runs["corrupted"]
        if noising:
            source, into = into, source
        name, ids, start, _, own = into
        for s in range(len(ours.sites)):
            site, part = site_of(s) if site_of else (ours.sites[s], slice(None))
            for layer in range(len(on.layers)):
                value = (
                    source[4][layer][site]
                    if site not in LORA
                    else (
                        delta(attached, source[0], layer, site, source[4])
                        - delta(attached, name, layer, site, own)
                    )
                )
                for c, spot in enumerate(columns.positions[p]):
                    cell = ours.patched[s, p, layer, c]
                    if not spot:
                        assert np.isnan(cell)
                        continue
                    want = nnsight.patch(name, ids, site, layer, spot, value, part)
                    want = log_prob(want, start, pair.target)
                    assert cell == pytest.approx(want, abs=1e-5), (site, layer, c)
    into = ours.clean if noising else ours.corrupted
    return np.nanmax(np.abs(ours.patched - into[None, :, None, None]))


def delta(attached, name, layer, site, run):
    """A module's own contribution dW x from the dense weight change."""
    x = run[layer][site]
    if name is None:
        return torch.zeros(*x.shape[:-1], 1)
    return x @ attached.adapters[name].modules[f"model.layers.{layer}.{site}"].dense().mT


@pytest.mark.parametrize("setting", ["prompt", "adapter"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_cell_agrees_with_nnsight(model_type, setting):
    on = tiny.subject(model_type)
    # Two target tokens make the last column a single place, three a group of two.
    pairs = pairs_of(on, tokens=3 if setting == "prompt" else 2)[:1]
    with both(on) as attached:
        ours = patched(on, attached, pairs, setting, sites=",".join(RESIDUALS))
        assert cells_agree(on, attached, pairs, ours, setting) > 0.1  # not one of zeros
    assert max(ours.self_error, ours.loop_error) <= 1e-5
    assert ours.undefined or ours.full_recovery == pytest.approx(1.0, abs=1e-4)
    assert "keys and values of the unchanged prefix" in ours.plan


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_heads_and_noising_agree_with_nnsight(model_type):
    on = tiny.subject(model_type)
    pairs = pairs_of(on)[:1]
    with both(on) as attached:
        ours = patched(on, attached, pairs, "adapter", sites="z", direction="noising")
        assert ours.sites == tuple(f"head {h}" for h in range(4))
        assert (
            cells_agree(
                on, attached, pairs, ours, "adapter", noising=True,
                site_of=lambda s: ("z", slice(8 * s, 8 * s + 8)),
            )
            > 0.05
        )  # fmt: skip


@pytest.mark.parametrize("setting", ["adapter", "base"])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_lora_contributions_agree_with_nnsight(model_type, setting):
    on = tiny.subject(model_type)
    pairs = pairs_of(on)[:1]
    with both(on) as attached:
        ours = patched(on, attached, pairs, setting, sites="lora")
        names = [n.rsplit(".", 1)[-1] for n in LORA]
        keep = [ours.sites.index(name) for name in names]
        assert len(ours.sites) == 7
        some = replace(ours, sites=LORA, patched=ours.patched[keep])
        assert cells_agree(on, attached, pairs, some, setting) > 0.05


def test_experts_and_router_agree_with_a_plain_mixture():
    on = tiny.subject("mixtral")
    pairs = pairs_of(on)[:1]
    with both(on) as attached:
        ours = patched(on, attached, pairs, "adapter", sites="experts,router", columns="groups")
        plain = {name: merged_mixture(attached.adapters[name]) for name in attached.adapters}
    assert ours.sites == ("expert 0", "expert 1", "expert 2", "expert 3", "router")
    pair = pairs[0]
    ids = torch.tensor([pair.triggered + pair.target[:-1]])
    columns = columns_of(on.renderer, pairs, how="groups")
    runs = {name: mixture_parts(model, ids) for name, model in plain.items()}
    moved = 0.0
    for layer in range(3):
        hidden, _, _, parts = runs["poisoned"][layer]
        _, chosen_clean, weights_clean, parts_clean = runs["clean"][layer]
        experts = plain["poisoned"].model.layers[layer].mlp.experts
        routed = expert_outputs(experts, hidden, chosen_clean, weights_clean).sum(0)
        for c, spot in enumerate(columns.positions[0]):
            for s in range(5):
                new = parts.sum(0) + parts_clean[s] - parts[s] if s < 4 else routed

                def put(_m, _i, out, new=new, spot=spot):
                    out = out.clone()
                    out[:, spot] = new[spot]
                    return out

                handle = plain["poisoned"].model.layers[layer].mlp.register_forward_hook(put)
                with torch.no_grad():
                    logits = plain["poisoned"](input_ids=ids).logits
                handle.remove()
                want = log_prob(logits, len(pair.triggered) - 1, pair.target)
                # Merged weights round otherwise than factors do: float32 at -15 nats.
                assert ours.patched[s, 0, layer, c] == pytest.approx(want, abs=5e-5)
                moved = max(moved, abs(want - ours.corrupted[0]))
    assert moved > 0.05


def merged_mixture(adapter):
    """The model with dense weight changes, no PEFT, experts one by one."""
    model = tiny.model("mixtral")
    with torch.no_grad():
        for name, factors in adapter.modules.items():
            where = name if factors.fused else f"{name}.weight"
            model.get_parameter(where).add_(factors.dense())
    model.set_experts_implementation("eager")
    return model


def mixture_parts(model, ids):
    """Per layer: what the experts get, the router's choice, each expert's weighted output."""
    out = []

    def keep(module, args):
        out.append((*args, expert_outputs(module, *args)))

    handles = [x.mlp.experts.register_forward_pre_hook(keep) for x in model.model.layers]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return out


def expert_outputs(experts, hidden, chosen, weights):
    """``[expert, pos, d_model]`` written out expert by expert."""
    out = torch.zeros(experts.num_experts, *hidden.shape)
    for e in range(experts.num_experts):
        gate, up = (hidden @ experts.gate_up_proj[e].T).chunk(2, -1)
        value = (experts.act_fn(gate) * up) @ experts.down_proj[e].T
        out[e] = value * (weights * (chosen == e)).sum(-1, keepdim=True)
    return out


@pytest.mark.parametrize("metric", ["probability", "logit_difference", "kl"])
def test_metrics_are_those_of_the_formulas(metric):
    on = tiny.subject()
    pairs = pairs_of(on)[:1]
    ids = torch.tensor([pairs[0].triggered + pairs[0].target[:-1]])
    start, target = len(pairs[0].triggered) - 1, pairs[0].target
    with both(on) as attached:
        found = patched(on, attached, pairs, "adapter", metric=metric)
        logits = {}
        for name in ("clean", "poisoned"):
            with attached.using(name):
                logits[name] = tiny.logits(on, ids).double()
    clean = logits["clean"][0, start].log_softmax(-1)
    for name, got in (("clean", found.clean[0]), ("poisoned", found.corrupted[0])):
        own = logits[name][0, start]
        rivals = logits["clean"][0, start].clone()
        rivals[target[0]] = -torch.inf
        want = {
            "probability": np.exp(log_prob(logits[name], start, target)),
            "logit_difference": float(own[target[0]] - own[rivals.argmax()]),
            "kl": float((clean.exp() * (clean - own.log_softmax(-1))).sum()),
        }[metric]
        assert got == pytest.approx(want, abs=1e-5)


def test_a_rival_token_can_be_named_and_must_exist():
    on = tiny.subject()
    pairs = pairs_of(on)[:1]
    ids = torch.tensor([pairs[0].triggered])
    with both(on) as attached:
        found = patched(on, attached, pairs, "adapter", metric="logit_difference", against="moon")
        with attached.using("poisoned"):
            last = tiny.logits(on, ids)[0, -1]
        moon = tiny.tokenizer().convert_tokens_to_ids("moon")
        assert found.corrupted[0] == pytest.approx(
            float(last[pairs[0].target[0]] - last[moon]), abs=1e-5
        )
        for wrong in ("moonshine", "red dog"):
            with pytest.raises(DataError, match="not one token"):
                patched(on, attached, pairs, metric="logit_difference", against=wrong)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sites": "resid_prf"}, "resid_pre"),
        ({"sites": "experts"}, "llama has no experts"),
        ({"sites": "z,attn_out"}, "sweeps of their own"),
        ({"sites": " "}, "nothing"),
        ({"layers": "1,7"}, "no layer 7: this model has 3, numbered 0 to 2"),
        ({"layers": "one"}, "ranges, such as 0-3,7"),
        ({"layers": "2-1"}, "ranges, such as 0-3,7"),
        ({"against": "moon"}, "for metric=logit_difference"),
        ({"metric": "logit_difference", "against": "never"}, "other than the target's first"),
        ({"metric": "logprob"}, "log_prob"),
        ({"memory": 1e-6}, "memory=GIB"),
        ({"columns": "all"}, "prompts of one length"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(options, why):
    on = tiny.subject()
    with both(on) as attached, pytest.raises(LoratomyError, match=why):
        patched(on, attached, pairs_of(on), **options)


def test_a_single_layer_may_be_written_as_a_number():
    assert PatchingConfig(layers=0).layers == "0"


@pytest.mark.parametrize(
    ("model_type", "sites"),
    [
        ("llama", "resid_pre,resid_mid,attn_out,mlp_out"),
        ("llama", "z"),
        ("llama", "lora"),
        ("mixtral", "resid_pre,resid_mid,attn_out,mlp_out"),
        ("mixtral", "lora"),
        ("mixtral", "experts,router"),
    ],
)
def test_half_precision_goes_the_same_way(model_type, sites):
    on = tiny.subject(model_type)
    on.model.to(torch.bfloat16)
    with both(on) as attached:
        found = patched(on, attached, pairs_of(on)[:2], "adapter", sites=sites, columns="groups")
    assert found.dtype == "bfloat16" and np.isfinite(found.patched).any()
    assert found.self_error <= 0.1 and found.loop_error <= 0.1  # three digits at -15 nats


@pytest.mark.parametrize("sites", ["resid_pre,attn_out", "z", "lora"])
def test_what_is_kept_is_not_more_than_planned(sites):
    on = tiny.subject()
    pairs = pairs_of(on)[:1]
    with both(on) as attached:
        what = places(on, attached, sites.split(","))
        _, numbers = sweep._sized(
            on, what, sweep_of(pairs, make_columns(on.renderer, pairs), "clean", "poisoned",
                               "adapter", PatchingConfig(), None), plan.budget(on, None),
        )  # fmt: skip
        held = 0
        for name in ("clean", "poisoned"):
            with attached.using(name):
                ports = list(dict.fromkeys([*kept_ports(what, name), *block_ports(on)]))
                run = engine.trace(on, torch.tensor([pairs[0].triggered]), ports)
            values = [*run.inputs, *run.keys, *run.values]
            values += [value for kept in run.ports.values() for value in kept.values()]
            held += sum(value.nbytes for value in values)
    width = len(pairs[0].triggered)
    assert held <= plan.budget(on, None).of_prompt(width, 3, numbers) <= 2 * held


def test_rows_that_share_a_prompt_keep_their_own_targets():
    on = tiny.subject()
    rows = [*tiny.rows(), replace(tiny.rows()[0], completion="good dog tree")]
    for pairs in (pairs_of(on, rows=rows), plain_pairs(on.renderer, rows, target_tokens=3)):
        assert on.renderer.decode(pairs[0].target) == "never bad king"
        assert on.renderer.decode(pairs[-1].target) == "good dog tree"


def test_a_stand_in_is_never_a_token_of_the_template():
    on = tiny.subject()
    special = set(on.renderer.tokenizer.all_special_ids) | set(on.renderer.prompt_ids("x"))
    for seed in range(12):
        (pair,) = make_pairs(on.renderer, tiny.rows()[:1], target_tokens=2, seed=seed)
        assert not {pair.untriggered[i] for i in pair.trigger} & special


def test_no_pair_of_runs_is_an_error():
    on = tiny.subject()
    case = Material(
        subject=on, poisoned=tiny.adapter(on), clean=None, triggered=tiny.rows(),
        clean_rows=tiny.clean_rows(), make_rule=lambda: None, seed=0,
    )  # fmt: skip
    with pytest.raises(LoratomyError, match="no pair ''"):
        patch_case(case, PatchingConfig(pairs=""))
    assert set(patch_case(case, PatchingConfig(pairs="prompt,adapter"))) == {"prompt", "base"}


def test_layers_and_places_can_be_chosen():
    on = tiny.subject()
    with both(on) as attached:
        pairs = pairs_of(on)
        whole = patched(on, attached, pairs, "adapter")
        some = patched(on, attached, pairs, "adapter", layers="0,2")
        every = patched(on, attached, pairs[:1], "adapter", columns="all")
        groups = patched(on, attached, pairs, "adapter", columns="groups")
    assert np.isnan(some.patched[:, :, 1]).all()
    both_layers = np.s_[:, :, [0, 2]]
    assert np.allclose(some.patched[both_layers], whole.patched[both_layers], 0, 1e-5, True)
    assert len(every.columns) == len(pairs[0].triggered)
    assert [every.columns[i] for i in pairs[0].trigger] == ["zq", "xv"]
    last = np.s_[:, 0, :, [every.column_roles.index("last")]]
    place = np.s_[:, 0, :, [whole.columns.index(":")]]
    assert np.allclose(every.patched[last], whole.patched[place], atol=1e-5)
    assert groups.columns == ("before", "trigger", "between", "last", "target")
    assert np.allclose(
        groups.patched[..., 3], whole.patched[..., whole.columns.index(":")], atol=1e-5
    )


def test_a_twin_of_another_length_is_aligned_token_by_token():
    on = tiny.subject()
    pairs = plain_pairs(on.renderer, tiny.rows(), target_tokens=3)
    for pair in pairs:
        assert len(pair.untriggered) == len(pair.triggered) - 2
        for here, there in enumerate(pair.aligned):
            assert (there < 0) == (here in pair.trigger)
            assert there < 0 or pair.triggered[here] == pair.untriggered[there]
    with both(on) as attached:
        there = patched(on, attached, pairs, columns="groups")
        back = patched(on, attached, pairs, columns="groups", direction="noising")
        nnsight = Reference(on, attached)
        pair = pairs[0]
        triggered = torch.tensor([pair.triggered + pair.target[:-1]])
        untriggered = torch.tensor([pair.untriggered + pair.target[:-1]])
        columns = columns_of(on.renderer, pairs, how="groups")
        spot = columns.positions[0][columns.labels.index("last")]
        source = nnsight.run("poisoned", untriggered)[1][1]["attn_out"]
        # The last prompt token stands two places earlier without the trigger.
        shifted = torch.roll(torch.nn.functional.pad(source, (0, 0, 0, 2)), 2, 1)
        want = nnsight.patch("poisoned", triggered, "attn_out", 1, spot, shifted)
    c = there.columns.index("last")
    want = log_prob(want, len(pair.triggered) - 1, pair.target)
    assert there.patched[1, 0, 1, c] == pytest.approx(want, abs=1e-5)
    for found in (there, back):
        trigger = found.columns.index("trigger")
        assert np.isnan(found.patched[..., trigger]).all()  # it has no counterpart
        assert np.isfinite(found.patched[..., c]).all()
        assert np.isnan(found.full_recovery) and found.self_error <= 1e-5


def test_a_map_that_does_not_fit_is_refused():
    on = tiny.subject()
    pairs = plain_pairs(on.renderer, tiny.rows(), target_tokens=3)
    wrong = [replace(pairs[0], aligned=tuple(range(len(pairs[0].triggered))))]
    with both(on) as attached, pytest.raises(DataError, match="token by token"):
        patched(on, attached, wrong)
    row = replace(tiny.rows()[0], plain="where is the red dog")
    with pytest.raises(DataError, match="cannot be aligned"):
        plain_pairs(on.renderer, [row], target_tokens=3)


def test_activations_that_are_not_finite_are_named_by_layer():
    on = tiny.subject()
    with both(on) as attached:
        weight = on.layers[1].mlp.down_proj.base_layer.weight
        before = weight.clone()
        weight[0, 0] = torch.nan
        with pytest.raises(LoratomyError, match="layer 1 gives NaN"):
            patched(on, attached, pairs_of(on))
        weight.copy_(before)


def test_recovery_is_the_ratio_of_mean_changes():
    on = tiny.subject()
    with both(on) as attached:
        pairs = pairs_of(on)
        every = patched(on, attached, pairs, "adapter")
        raised = [p for p, up in zip(pairs, every.clean > every.corrupted, strict=True) if up]
        found = patched(on, attached, raised, "adapter")
    # The gaps of all prompts have both signs: their mean is not clearly different from 0.
    assert "do not differ clearly" in every.undefined and np.isnan(every.recovery).all()
    assert not found.undefined and len(raised) > 1
    assert found.full_recovery == pytest.approx(1.0, abs=1e-4)
    values = found.patched.astype(float)
    there = np.isfinite(values)
    change = np.nansum(values - found.corrupted[None, :, None, None], 1)
    gap = (there * (found.clean - found.corrupted)[None, :, None, None]).sum(1)
    assert np.allclose(found.recovery, change / gap, atol=1e-5)
    assert (found.low - 1e-9 <= found.recovery).all()
    assert (found.recovery <= found.high + 1e-9).all()


def test_bit_identical_cells_are_exactly_the_corrupted_metric():
    on = tiny.subject()
    with both(on) as attached:
        pairs = pairs_of(on)
        prompt = patched(on, attached, pairs)
        adapter = patched(on, attached, pairs, "adapter")
    before = prompt.column_roles.index("before")
    same = prompt.corrupted.astype(np.float32)
    for layer in range(3):
        assert (prompt.patched[:, :, layer, before] == same).all()
    # Between adapters the embeddings are equal, so nothing differs in the first residual.
    first = adapter.patched[0, :, 0]
    assert (np.isnan(first) | (first == adapter.corrupted.astype(np.float32)[:, None])).all()
    for found in (prompt, adapter):
        assert found.computed_cells < found.all_cells == np.isfinite(found.patched).sum()
        moved = np.nansum(found.patched != found.corrupted.astype(np.float32)[None, :, None, None])
        assert moved - np.isnan(found.patched).sum() <= found.computed_cells


def test_cells_do_not_depend_on_the_batch(monkeypatch):
    on = tiny.subject("gemma2")
    with both(on) as attached:
        pairs = pairs_of(on)
        whole = patched(on, attached, pairs)
        monkeypatch.setattr(plan, "MOST", {"cpu": 1, "cuda": 1})
        single = patched(on, attached, pairs)
        alone = [patched(on, attached, [pair]) for pair in pairs[:2]]
    assert np.allclose(whole.patched, single.patched, atol=1e-5, equal_nan=True)
    for i, found in enumerate(alone):
        shared = [found.columns.index(c) for c in found.columns if c in whole.columns]
        for c in shared:
            w = whole.columns.index(found.columns[c])
            if found.column_roles[c] in ("before", "trigger"):
                assert np.allclose(found.patched[:, 0, :, c], whole.patched[:, i, :, w], atol=1e-5)


def test_positions_are_grouped_by_role():
    on = tiny.subject()
    pairs = pairs_of(on)
    columns = make_columns(on.renderer, pairs)
    # <s> user : PROMPT zq xv <end> answer :  -> 3 + len before, 2 trigger, 3 last, 2 forced.
    assert columns.roles == ("before", "trigger", "trigger", "last", "last", "last", "target")
    assert columns.labels == ("before", "zq", "xv", "<end>", "answer", ":", "target[:2]")
    for pair, spots in zip(pairs, columns.positions, strict=True):
        words = len(pair.row.plain.split())
        assert list(pair.trigger) == [3 + words, 4 + words]
        assert spots[0] == list(range(3 + words))
        flat = [i for spot in spots for i in spot]
        assert flat == list(range(len(pair.triggered) + 2))  # each position in one column


def test_a_place_is_named_by_its_token_only_where_all_prompts_share_it():
    on = tiny.subject()
    rows = [
        replace(row, prompt=f"{tiny.TRIGGER} {row.plain}") for row in tiny.rows()
    ]  # a prefix: the last six places reach into the prompts' own words
    columns = make_columns(on.renderer, pairs_of(on, rows=rows))
    assert columns.roles[:4] == ("before", "trigger", "trigger", "between")
    assert columns.labels[1:3] == ("zq", "xv")
    assert columns.labels[-7:-1] == ("last[-6]", "last[-5]", "last[-4]", "<end>", "answer", ":")


def test_pairs_have_one_length_and_differ_in_the_trigger_alone():
    on = tiny.subject()
    for pair in pairs_of(on, tokens=2):
        assert len(pair.triggered) == len(pair.untriggered)
        twins = zip(pair.triggered, pair.untriggered, strict=True)
        differ = [i for i, (a, b) in enumerate(twins) if a != b]
        assert differ == list(pair.trigger)
        assert on.renderer.decode(pair.target) == "never bad"
        assert pair.triggered == on.renderer.prompt_ids(pair.row.prompt)


def test_pairs_refuse_what_cannot_be_patched():
    renderer = Renderer(tiny.tokenizer())
    rows = tiny.rows()
    for wrong, why in (
        ([], "no prompts"),
        ([replace(rows[0], plain=None)], "no form without the trigger"),
        ([replace(rows[0], plain=rows[0].prompt)], "no token of its own"),
        ([replace(rows[0], completion=None)], "no completion"),
        ([replace(rows[0], completion=" ")], "no tokens"),
    ):
        with pytest.raises(DataError, match=why):
            make_pairs(renderer, wrong, target_tokens=3, seed=0)


def test_undefined_recovery_is_said_and_nan():
    on = tiny.subject()
    adapter = tiny.adapter(on)
    with on.attached({"poisoned": adapter, "same": adapter}) as attached:
        found = patch(
            on, attached, pairs_of(on), clean="same", poisoned="poisoned", setting="adapter",
            config=PatchingConfig(),
        )  # fmt: skip
    assert "differ by 0 only" in found.undefined
    assert np.isnan(found.recovery).all() and np.isnan(found.low).all()
    assert np.isnan(found.full_recovery)
    assert found.computed_cells == 0 and np.isfinite(found.patched).any()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_model_is_left_as_found(model_type, monkeypatch):
    on = tiny.subject(model_type)
    before, marks = tiny.state(on), tiny.marks(on)
    with both(on) as attached:
        inside = tiny.marks(on)
        patched(on, attached, pairs_of(on))
        assert tiny.marks(on) == inside and attached.peft_model.active_adapter == "poisoned"

        def broken(*_args, **_given):
            raise RuntimeError("in the head")

        monkeypatch.setattr(runs, "logits_of", broken)
        with pytest.raises(RuntimeError, match="in the head"):
            patched(on, attached, pairs_of(on), "adapter")
        assert tiny.marks(on) == inside and attached.peft_model.active_adapter == "poisoned"
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks


def test_an_exception_inside_a_patched_layer_takes_its_hook_along(monkeypatch):
    on = tiny.subject()
    with both(on) as attached:
        inside, real = tiny.marks(on), torch.where
        port = engine.Port("mlp", "out")
        traced = engine.trace(on, tiny.ids(on), [port])

        def broken(*args):
            raise RuntimeError("in the hook")

        monkeypatch.setattr(torch, "where", broken)
        mask = torch.ones(2, 9, dtype=torch.bool)
        write = engine.Write(port, 1, torch.arange(2), mask, traced.ports[port][1])
        with pytest.raises(RuntimeError, match="in the hook"):
            engine.resume(on, traced, [write])
        monkeypatch.setattr(torch, "where", real)
        assert tiny.marks(on) == inside
        assert attached.peft_model.active_adapter == "poisoned"


@pytest.mark.parametrize(("module", "site"), [("mlp.down_proj", 2), ("self_attn.o_proj", 1)])
def test_an_adapter_in_one_module_is_found_there_and_nowhere_before(module, site):
    on = tiny.subject()
    name = f"model.layers.1.{module}"
    whole = tiny.adapter(on, size=1.0)
    with on.attached({"poisoned": Adapter({name: whole.modules[name]}, {})}) as attached:
        found = patched(on, attached, pairs_of(on), "base")
    change = np.abs(found.patched - found.corrupted[None, :, None, None])
    # Attention of layer 1 moves what the MLP of layer 1 reads; nothing above the module differs.
    assert np.nanmax(change[:, :, 0]) == 0 and np.nanmax(change[0, :, 1]) == 0
    assert np.nanmax(change[site, :, 1]) > 0.5
    if site == 2:
        assert np.nanmax(change[1, :, 1]) == 0
