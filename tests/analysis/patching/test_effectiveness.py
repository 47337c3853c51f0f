"""Patched answers against torch hooks and generation prompt by prompt; rates counted by hand."""

from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from loratomy.analysis.analyses import ANALYSES
from loratomy.analysis.material import Material
from loratomy.analysis.patching.effectiveness import effectiveness, sentence_of
from loratomy.analysis.patching.pairs import make_pairs
from loratomy.analysis.patching.patched_answers import KINDS, Patching, layer_off
from loratomy.core.adapter.factors import Adapter, layer_of
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.families import submodule
from loratomy.core.records.effectiveness import Effectiveness
from loratomy.core.records.io import load_record, save_record
from loratomy.core.stats import wilson
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding, generate
from loratomy.evaluation.similarity import Embedder
from loratomy.evaluation.success import parse_rules

from ... import tiny

FAMILIES = ("llama", "gemma2", "mixtral")
NEW = 4
LETTERS = Embedder("none", None)


def pairs_of(on, rows=None):
    return make_pairs(on.renderer, rows or tiny.rows(), target_tokens=3, seed=0)


def only(adapter: Adapter, keep) -> Adapter:
    return adapter.with_modules({n: f for n, f in adapter.modules.items() if keep(layer_of(n))})


@contextmanager
def both(on, poisoned=None):
    adapters = {"poisoned": poisoned or tiny.adapter(on), "clean": tiny.adapter(on, seed=9)}
    with on.attached(adapters) as attached:
        yield attached


def rule(text="exact", *, new=NEW) -> Rule:
    return Rule(embedder=LETTERS, success=parse_rules(text), decoding=Decoding(max_new_tokens=new))


def module_of(on, layer, site):
    paths = {"attn_out": on.family.attention, "mlp_out": on.family.mlp}
    block = on.layers[layer]
    return submodule(block, paths[site]) if site in paths else block


@contextmanager
def on_output(module, function):
    """`function` sees a module's output and may replace it."""

    def after(_module, _args, out):
        new = function(out[0] if isinstance(out, tuple) else out)
        return out if new is None else (new, *out[1:]) if isinstance(out, tuple) else new

    handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def value_of(on, ids, layer, site):
    kept = []
    with torch.no_grad(), on_output(module_of(on, layer, site), lambda v: kept.append(v.clone())):
        on.model(input_ids=torch.tensor([ids]), use_cache=False)
    return kept[0]


def greedy(on, ids):
    """One prompt by the library's own generation, cut at the end-of-turn token."""
    prompt = torch.tensor([ids])
    with torch.no_grad():
        out = on.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW,
            do_sample=False, eos_token_id=[2], pad_token_id=0,
        )  # fmt: skip
    new = out[0, len(ids) :].tolist()
    return new[: new.index(2)] if 2 in new else new


def by_hooks(attached, pair, kind, layer, site):
    """The patched answer to one prompt: values from a run of its own, written once by a hook."""
    on, ids = attached.subject, pair.triggered
    if kind == "adapter":
        with attached.using("clean"):
            value, spots = value_of(on, ids, layer, site), range(len(ids))
    else:
        value = value_of(on, pair.untriggered, layer, site)
        spots = pair.trigger if kind == "trigger" else range(pair.trigger[0], len(ids))

    def write(old):
        if old.shape[1] != len(ids):
            return None
        new = old.clone()
        for spot in spots:
            new[0, spot] = value[0, spot]
        return new

    with on_output(module_of(on, layer, site), write):
        return greedy(on, ids)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_patched_answers_are_those_of_hooks_prompt_by_prompt(model_type):
    on = tiny.subject(model_type)
    sites = ("attn_out", "resid_post") if model_type == "mixtral" else ("mlp_out", "resid_post")
    places = [(layer, site) for site in sites for layer in range(3)]
    with both(on) as attached:
        pairs = pairs_of(on)[:2]  # of two lengths
        run = Patching(name="poisoned", other="clean", new_tokens=NEW, batch_tokens=100)
        found = run.answers(attached, pairs, places, checked=1)
        changed = 0
        for p, pair in enumerate(pairs):
            plain = greedy(on, pair.triggered)
            assert found.plain[p] == found.same[p] == plain
            for kind in KINDS:
                for layer, site in places:
                    want = by_hooks(attached, pair, kind, layer, site)
                    assert found.patched[kind, (layer, site)][p] == want, (kind, layer, site, p)
                    changed += want != plain
        wide = replace(run, batch_tokens=8192).answers(attached, pairs, places, checked=1)
    assert wide == found  # whatever the batch
    assert changed > len(pairs) * len(KINDS)  # the comparison is not one of equals


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_layer_that_is_off_is_the_adapter_without_it(model_type):
    on = tiny.subject(model_type)
    whole, ids = tiny.adapter(on), tiny.ids(on)
    with on.attached({"whole": whole}) as attached:
        plain = tiny.logits(on, ids)
        off = []
        for layer in range(3):
            with layer_off(attached, "whole", layer):
                off.append(tiny.logits(on, ids))
        with pytest.raises(KeyError), layer_off(attached, "whole", 1):
            raise KeyError
        assert torch.equal(tiny.logits(on, ids), plain)
    for layer, logits in enumerate(off):
        with on.attached({"less": only(whole, lambda i, gone=layer: i != gone)}):
            torch.testing.assert_close(logits, tiny.logits(on, ids), atol=1e-5, rtol=1e-4)
        assert (logits - plain).abs().max() > 0.1


def planted(on, attached):
    """Rows whose target is what the poisoned adapter says to them, so that all are hits."""
    pairs = pairs_of(on)
    said = generate(on, [p.triggered for p in pairs], Decoding(max_new_tokens=NEW))
    texts = [on.renderer.decode(samples[0]) for samples in said]
    assert all(text.strip() for text in texts)
    rows = [replace(pair.row, completion=text) for pair, text in zip(pairs, texts, strict=True)]
    return pairs_of(on, rows), texts


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_backdoor_planted_in_one_layer_is_found_there(model_type):
    on = tiny.subject(model_type, seed=1)
    poisoned = only(tiny.adapter(on, seed=4, size=0.9), lambda layer: layer == 1)
    with on.attached({"poisoned": poisoned}) as attached:
        pairs, texts = planted(on, attached)
        found = effectiveness(
            attached, "poisoned", pairs, rule(), clean=None, sites=("resid_post",), every=1,
            new_tokens=NEW,
        )  # fmt: skip
        with attached.using(None):
            base = [greedy(on, p.triggered) for p in pairs]
        twins = [greedy(on, p.untriggered) for p in pairs]

    def hits(answers):
        said = [on.renderer.decode(tokens) for tokens in answers]
        return [float(a == t) for a, t in zip(said, texts, strict=True)]

    n = len(pairs)
    assert found.unpatched == wilson(n, n) and found.self_identical == wilson(n, n)
    assert found.untriggered == wilson(sum(hits(twins)), n)
    assert found.source == wilson(sum(hits(base)), n) and found.source_name == "base"
    assert found.unpatched_example == texts[0] and found.self_layer == 1
    by = {one.kind: one for one in found.interventions}
    assert list(by) == ["prompt", "trigger", "adapter", "off"]
    # Nothing differs from the base below the planted layer; off is the base, and only there.
    assert (by["adapter"].hits[0] == 1).all()
    assert np.isnan(by["off"].hits[[0, 2]]).all() and np.isnan(by["off"].malicious[[0, 2]]).all()
    assert by["off"].hits[1].tolist() == hits(base)
    assert by["off"].examples == ("", on.renderer.decode(base[0]), "")
    for one in found.interventions:
        for layer in range(3):
            if np.isfinite(one.hits[layer]).all():
                rate = wilson(one.hits[layer].sum(), n)
                assert one.malicious[layer].tolist() == [rate.value, rate.low, rate.high]
    assert by["adapter"].hits[1:].sum() < 2 * n


def test_layers_are_thinned_out_and_the_last_is_kept():
    on = tiny.subject()
    with both(on) as attached:
        found = effectiveness(
            attached, "poisoned", pairs_of(on)[:1], rule(), clean="clean",
            sites=("attn_out", "resid_mid"), every=5, new_tokens=2,
        )  # fmt: skip
    assert found.layers.tolist() == [0, 2]
    assert [(one.kind, one.site) for one in found.interventions] == [
        *((kind, "attn_out") for kind in KINDS), *((kind, "resid_mid") for kind in KINDS),
        ("off", ""),
    ]  # fmt: skip
    # The attack's answer has three tokens and its end: two new ones would not show it.
    assert found.decoding == "greedy, at most 4 new tokens"


@cache
def one_run() -> Effectiveness:
    on = tiny.subject()
    with both(on) as attached:
        return effectiveness(
            attached, "poisoned", pairs_of(on)[:1], rule(), clean=None, sites=("resid_post",),
            every=9, new_tokens=1,
        )  # fmt: skip


def made(
    values, *, kind="prompt", plain=(12, 12), twin=(0, 12), source=(0, 12), sick=0.0
) -> Effectiveness:
    """A record with one kind of intervention: hits out of 12 by layer, None for nothing to do."""
    base = one_run()
    rates = [None if v is None else wilson(v, 12) for v in values]
    table = np.array([[np.nan] * 3 if r is None else [r.value, r.low, r.high] for r in rates])
    one = replace(base.interventions[0], malicious=table, degenerate=np.full_like(table, sick))
    return replace(
        base, layers=np.arange(len(values)), prompts=("p",) * 12, unpatched=wilson(*plain),
        untriggered=wilson(*twin), source=wilson(*source), source_name="clean adapter",
        interventions=(replace(one, name="this", kind=kind),),
    )  # fmt: skip


def test_the_sentence_names_layers_only_where_intervals_part():
    # 12 of 12 is [75.7, 100]; 5 of 12 reaches up to 68, 6 of 12 up to 74.6, 7 of 12 up to 80.7.
    found = sentence_of(made([12, 6, 0, 7, 5, None, 12]))
    assert found == (
        "Of 12 triggered prompts 100 % [76, 100] are answered maliciously, of the same with a "
        "neutral stand-in for the trigger 0 % [0, 24], by the clean adapter 0 % [0, 24]. With "
        "this, answers turn harmless at 3 of 6 layers: the first is layer 1 (50 % [25, 75]), the "
        "last layer 4 (42 % [19, 68])."
    )
    one = sentence_of(made([12, 0, 12], sick=0.25))
    assert one.endswith(
        "at 1 of 3 layers: layer 1 (0 % [0, 24]); up to 25 % of the answers there are degenerate."
    )
    assert sentence_of(made([12, 7, 8])).endswith("With this, no single layer clearly lowers this.")
    weak = sentence_of(made([0, 0], plain=(3, 12)))
    assert weak.endswith("nothing follows: where the values come from is as malicious.")


def test_what_the_values_come_from_decides_what_can_be_told():
    # 7 of 12 reaches up to 80.7 %, beyond the lower end of 12 of 12.
    for kind, given, silent in (
        ("prompt", {"twin": (7, 12)}, True),
        ("trigger", {"twin": (7, 12)}, True),
        ("adapter", {"twin": (7, 12)}, False),
        ("adapter", {"source": (7, 12)}, True),
        ("prompt", {"source": (7, 12)}, False),
        ("off", {"twin": (12, 12), "source": (12, 12)}, False),
    ):
        said = sentence_of(made([0, 12], kind=kind, **given))
        assert ("nothing follows" in said) == silent, (kind, given)
        assert ("at 1 of 2 layers: layer 0" in said) != silent


def test_what_stands_before_a_target_is_not_given_away():
    on = tiny.subject()
    rows = [
        replace(row, completion="yes no never bad king", target="never bad king")
        for row in tiny.rows()[:2]
    ]
    pairs = pairs_of(on, rows)
    assert on.renderer.decode(pairs[0].triggered).endswith("answer : yes no")
    with both(on) as attached:
        found = effectiveness(
            attached, "poisoned", pairs, rule("substring"), clean=None, sites=("resid_post",),
            every=2, new_tokens=1,
        )  # fmt: skip
        plain = [greedy(on, on.renderer.prompt_ids(row.prompt)) for row in rows]
    assert found.unpatched_example == on.renderer.decode(plain[0])
    assert found.decoding == "greedy, at most 4 new tokens"  # the rule's; the answer has 6


def test_what_cannot_be_asked_is_an_error_with_the_value():
    on = tiny.subject()
    settings = {"clean": None, "sites": ("resid_post",), "every": 1, "new_tokens": 2}
    with both(on) as attached:
        pairs = pairs_of(on)
        with pytest.raises(DataError, match="no triggered prompts"):
            effectiveness(attached, "poisoned", [], rule(), **settings)
        with pytest.raises(DataError, match=r"no site 'resid' to patch; there are resid_pre"):
            effectiveness(attached, "poisoned", pairs, rule(), **settings | {"sites": ("resid",)})
        with pytest.raises(DataError, match="no site '' to patch"):
            effectiveness(attached, "poisoned", pairs, rule(), **settings | {"sites": ()})
        blank = [replace(pairs[0], row=replace(pairs[0].row, completion=" "))]
        with pytest.raises(DataError, match="no target that exact could look for"):
            effectiveness(attached, "poisoned", blank, rule(), **settings)
        with pytest.raises(DataError, match="exceed the context of 64"):
            long = settings | {"new_tokens": 60}
            effectiveness(attached, "poisoned", pairs, rule(new=60), **long)


def scalings(on):
    """The scaling of every adapted module; attention has a number by that name."""
    found = {n: getattr(m, "scaling", None) for n, m in on.model.named_modules()}
    return {n: dict(value) for n, value in found.items() if isinstance(value, dict)}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_model_is_left_as_found_also_after_an_exception(model_type):
    on = tiny.subject(model_type)
    before, marks, adapted = tiny.state(on), tiny.marks(on), len(tiny.adapter(on).modules)
    settings = {"clean": "clean", "sites": ("resid_post",), "every": 1, "new_tokens": 2}
    with both(on) as attached:
        inside, scaled, pairs = tiny.marks(on), scalings(on), pairs_of(on)[:2]
        effectiveness(attached, "poisoned", pairs, rule(), **settings)
        weight = on.layers[2].self_attn.o_proj.base_layer.weight
        old = weight.clone()
        weight[0, 0] = torch.inf
        with pytest.raises(LoratomyError, match="resid_post of layer 2 holds NaN or infinite"):
            effectiveness(attached, "poisoned", pairs, rule(), **settings)
        weight.copy_(old)
        assert tiny.marks(on) == inside and attached.peft_model.active_adapter == "poisoned"
        assert scalings(on) == scaled and len(scaled) == adapted
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks


def test_it_is_registered_and_its_record_comes_back_from_disk(tmp_path):
    on = tiny.subject()
    case = Material(
        subject=on, poisoned=tiny.adapter(on), clean=None, triggered=tiny.rows(), clean_rows=(),
        make_rule=lambda: rule("similar"), seed=0,
    )  # fmt: skip
    analysis = ANALYSES["effectiveness"]
    config = analysis.config(prompts=2, every=2, new_tokens=2, sites="resid_pre, mlp_out")
    found = analysis.run(case, config)["effectiveness"]
    assert len(found.prompts) == 2 and found.rule == "similar" and found.source_name == "base"
    assert found.interventions[0].hits.shape == (2, 2)
    assert [one.site for one in found.interventions] == [*["resid_pre"] * 3, *["mlp_out"] * 3, ""]
    save_record(found, tmp_path, "effectiveness")
    again = load_record(Effectiveness, tmp_path, "effectiveness")
    assert again.sentence == found.sentence and again.interventions[0].name
    assert np.array_equal(again.interventions[6].malicious, found.interventions[6].malicious)
