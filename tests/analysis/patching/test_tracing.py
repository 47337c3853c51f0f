"""nnsight's route against plain torch hooks on models of several kinds; nothing is left behind."""

import re
import runpy
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from loratomy.analysis.patching.tracing import (
    SITES,
    across_adapters,
    captures,
    intervened_answers,
    intervened_logits,
    traced,
)
from loratomy.core.adapter.factors import Adapter
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.families import submodule
from loratomy.evaluation.generation import Decoding, generate

from ... import tiny

FAMILIES = ("llama", "gemma2", "mixtral")
PLACES = [(layer, site) for layer in range(3) for site in SITES]
NEW = 6


def first(out):
    return out[0] if isinstance(out, tuple) else out


@contextmanager
def live(on, *, linear=False):
    """The tiny subject with two adapters, as an nnsight model."""
    adapters = {"poisoned": tiny.adapter(on), "clean": tiny.adapter(on, seed=9)}
    if linear:
        adapters = {
            name: a.with_modules({n: f for n, f in a.modules.items() if not f.fused})
            for name, a in adapters.items()
        }
    with on.attached(adapters) as attached, traced(attached) as made:
        yield made


@contextmanager
def hooked(on, layer, site, function):
    """The same change with a torch hook; `function` may also just look and return nothing."""
    family, block = on.family, on.layers[layer]

    def before(_module, args, given):
        old = args[0] if args else given["hidden_states"]
        new = function(old)
        if new is not None:
            old.copy_(new)  # in place: the residual goes on with it too

    def after(_module, _args, out):
        new = function(first(out))
        return out if new is None else (new, *out[1:]) if isinstance(out, tuple) else new

    path = {"attn_out": family.attention, "mlp_out": family.mlp, "resid_mid": family.mlp_norm}
    module = submodule(block, path[site]) if site in path else block
    if site in ("resid_pre", "resid_mid"):
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def seen(on, ids, layer, site):
    kept = []
    with torch.no_grad(), hooked(on, layer, site, lambda t: kept.append(t.clone())):
        on.model(input_ids=ids, use_cache=False)
    return kept[0]


def token_by_token(on, ids, steps):
    """Greedy tokens by whole forward passes without a cache."""
    for _ in range(steps):
        ids = torch.cat([ids, tiny.logits(on, ids)[:, -1:].argmax(-1)], 1)
    return ids


@pytest.mark.parametrize("model_type", FAMILIES)
def test_captures_are_what_hooks_see(model_type):
    on = tiny.subject(model_type)
    ids = tiny.ids(on)
    with live(on) as made:
        found = captures(made, ids.tolist(), PLACES)
        for place in PLACES:
            assert torch.equal(found[place], seen(on, ids, *place)), place
    for layer in range(3):
        attention = found[layer, "attn_out"]
        if hasattr(on.layers[layer], "pre_feedforward_layernorm"):  # Gemma norms it on the way
            attention = on.layers[layer].post_attention_layernorm(attention)
        torch.testing.assert_close(found[layer, "resid_pre"] + attention, found[layer, "resid_mid"])


def test_rank_space_is_a_times_the_modules_input():
    on = tiny.subject()
    ids = tiny.ids(on)
    site = "self_attn.v_proj.lora_A"
    with live(on) as made:
        resid = captures(made, ids.tolist(), [(1, "resid_pre")])[1, "resid_pre"]
        for name in ("poisoned", "clean"):
            with made.attached.using(name):
                both = captures(made, ids.tolist(), [(1, "resid_pre"), (1, site)])
                factors = made.attached.adapters[name].modules["model.layers.1.self_attn.v_proj"]
                normed = on.layers[1].input_layernorm(both[1, "resid_pre"])
                torch.testing.assert_close(both[1, site], normed @ factors.a.T)
        assert not torch.equal(resid, both[1, "resid_pre"])  # the other adapter ran


@pytest.mark.parametrize("model_type", FAMILIES)
def test_one_mixed_batch_equals_separate_runs(model_type):
    on = tiny.subject(model_type)
    ids = tiny.ids(on, batch=3)
    names = ["clean", None, "poisoned"]
    with live(on, linear=True) as made:
        mixed = across_adapters(made, ids.tolist(), PLACES, adapters=names)
        for name in names:
            with made.attached.using(name):
                for place in PLACES:
                    # A batch of another size rounds otherwise: values are up to 10 in float32.
                    torch.testing.assert_close(
                        mixed[name][place], seen(on, ids, *place), atol=5e-5, rtol=1e-4
                    )
        gap = (mixed["clean"][2, "resid_post"] - mixed["poisoned"][2, "resid_post"]).abs().max()
        assert gap > 0.1


def test_fused_experts_are_refused_by_name_and_nothing_is_left():
    on = tiny.subject("mixtral")
    ids = tiny.ids(on).tolist()
    with live(on) as made:
        with pytest.raises(LoratomyError, match=r"fused experts .*experts\.gate_up_proj.*using"):
            across_adapters(made, ids, [(0, "resid_post")], adapters=["clean", "poisoned"])
        with pytest.raises(LoratomyError, match="not attached"):
            across_adapters(made, ids, [(0, "resid_post")], adapters=["cleen"])
        with pytest.raises(DataError, match="belongs to one adapter"):
            across_adapters(made, ids, [(0, "self_attn.q_proj.lora_A")], adapters=[None])


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_interventions_agree_with_hooks_in_forward_and_generation(model_type, site):
    on = tiny.subject(model_type)
    ids = tiny.ids(on)

    def bent(value):
        return torch.flip(value, [-1]) * 0.5

    with live(on) as made:
        logits = intervened_logits(made, ids.tolist(), {(1, site): bent})
        plain = tiny.logits(on, ids)
        with hooked(on, 1, site, bent):
            torch.testing.assert_close(logits, tiny.logits(on, ids), atol=1e-5, rtol=1e-4)
            # Every position of every pass is bent, so a run without cache is the same run.
            want = token_by_token(on, ids, NEW)[:, ids.shape[1] :]
        given = intervened_answers(made, ids.tolist(), {(1, site): bent}, max_new_tokens=NEW)
    assert (logits - plain).abs().max() > 0.1
    ends = [next((i for i, t in enumerate(row) if t == 2), NEW) for row in want.tolist()]
    assert given == [row[:end] for row, end in zip(want.tolist(), ends, strict=True)]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_change_of_the_prompt_alone_agrees_with_hooks_that_fire_once(model_type):
    on = tiny.subject(model_type)
    ids = tiny.ids(on)

    def once(value):
        return value * -1 if value.shape[1] == ids.shape[1] else value

    with live(on) as made:
        given = intervened_answers(
            made, ids.tolist(), {(2, "resid_post"): lambda t: -t}, max_new_tokens=NEW,
            every_step=False,
        )  # fmt: skip
        with hooked(on, 2, "resid_post", once):
            prompts = [row.tolist() for row in ids]
            want = generate(on, prompts, Decoding(max_new_tokens=NEW))
            plain = intervened_answers(made, prompts, {}, max_new_tokens=NEW)
        clean = generate(on, prompts, Decoding(max_new_tokens=NEW))
    assert given == [samples[0] for samples in want]
    assert plain == given  # the hook is on the same modules that nnsight runs
    assert given != [samples[0] for samples in clean]


def test_several_places_change_in_forward_order_whatever_the_order_given():
    on = tiny.subject()
    ids = tiny.ids(on)
    order = []

    def look(place):
        return lambda value: order.append(place) or value

    places = [
        *((2, "resid_post"), (0, "mlp.down_proj.lora_A"), (0, "resid_mid"), (0, "resid_pre")),
        *((0, "self_attn.o_proj.lora_A"), (0, "attn_out"), (0, "mlp_out")),
    ]
    with live(on) as made:
        same = intervened_logits(made, ids.tolist(), {p: look(p) for p in places})
        torch.testing.assert_close(same, tiny.logits(on, ids))
        zero = {(1, f"{m}.lora_A"): torch.zeros_like for m in ("self_attn.q_proj", "mlp.up_proj")}
        less = intervened_logits(made, ids.tolist(), zero)
    assert order == [places[i] for i in (3, 4, 5, 2, 1, 6, 0)]
    kept = tiny.adapter(on).modules
    gone = ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj")
    smaller = Adapter({n: f for n, f in kept.items() if n not in gone}, {})
    with on.attached({"smaller": smaller}):
        torch.testing.assert_close(less, tiny.logits(on, ids), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_traced_is_an_error_with_the_value():
    on = tiny.subject()
    ids = tiny.ids(on).tolist()
    place = (0, "resid_post")
    with live(on) as made:
        for prompts, at, why in (
            ([ids[0], ids[1][:-1]], [place], r"these have \[8, 9\] tokens"),
            ([], [place], "these have no tokens"),
            ([[]], [place], r"these have \[0\] tokens"),
            (ids, [], "no place given"),
            (ids, [(3, "resid_post")], "no layer 3; the model has layers 0 to 2"),
            (ids, [(0, "resid_past")], "no site 'resid_past' in layer 0"),
            (ids, [(0, "mlp.gate.lora_A")], "linear module that the adapter 'poisoned' touches"),
        ):
            with pytest.raises(DataError, match=why):
                captures(made, prompts, at)
        with pytest.raises(DataError, match=r"returned \(2, 9, 1\); a tensor of shape \(2, 9, 32"):
            intervened_logits(made, ids, {place: lambda t: t[..., :1]})
        with pytest.raises(DataError, match="returned NoneType"):
            intervened_answers(made, ids, {place: lambda t: None}, max_new_tokens=2)
        with pytest.raises(DataError, match="exceed the context of 64"):
            intervened_answers(made, ids, {}, max_new_tokens=60)
        on.layers[1].mlp.down_proj.base_layer.weight[0, 0] = torch.inf
        with pytest.raises(LoratomyError, match="resid_post of layer 1 holds NaN or infinite"):
            captures(made, ids, [place, (1, "resid_post")])


@pytest.mark.parametrize("model_type", FAMILIES)
def test_model_tokenizer_and_hooks_are_left_as_found(model_type):
    on = tiny.subject(model_type)
    tokenizer = on.renderer.tokenizer
    tokenizer.padding_side = "right"
    ids = tiny.ids(on).tolist()
    before, marks = tiny.state(on), tiny.marks(on)
    settings = on.model.generation_config

    def broken(_value):
        raise KeyError("mine")

    with live(on, linear=True) as made:
        attached = made.attached
        intervened_answers(made, ids, {(0, "attn_out"): lambda t: t}, max_new_tokens=2)
        for run in (
            lambda: intervened_logits(made, ids, {(0, "resid_pre"): broken}),
            lambda: intervened_answers(made, ids, {(0, "mlp_out"): broken}, max_new_tokens=2),
        ):
            with pytest.raises(KeyError, match="mine"):
                run()
        failing = on.model.model.norm.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            across_adapters(made, ids, [(0, "resid_post")], adapters=["clean", None])
        failing.remove()
        assert attached.peft_model.active_adapter == "poisoned"
    assert not any({"forward", "__nnsight__"} & set(m.__dict__) for m in on.model.modules())
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks
    assert tokenizer.padding_side == "right" and on.model.generation_config is settings


def test_the_documented_examples_run(tmp_path, capsys):
    page = Path(__file__).parents[3] / "docs" / "interventions.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 3
    script = tmp_path / "example.py"  # nnsight reads the source of a trace: it must be a file
    script.write_text("\n".join(blocks), encoding="utf-8")
    runpy.run_path(str(script))
    said = capsys.readouterr().out
    width = int(re.search(r"torch.Size\(\[1, (\d+), \d+\]\) torch.Size\(\[1, \1, 4\]\)", said)[1])
    assert f"rank space by hand (1, {width}, 4)" in said and "norms by hand 4 4" in said
    assert float(re.search(r"largest gap (\S+)", said)[1]) > 0
