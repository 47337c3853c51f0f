"""The vector of heads against hand-made hooks and whole passes without a cache."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from loratomy.analysis.analyses import ANALYSES
from loratomy.analysis.localisation import vector as module
from loratomy.analysis.localisation.steering import added_at_prompt_end
from loratomy.analysis.localisation.vector import (
    VectorConfig,
    head_effects,
    mean_z,
    sentence_of,
    written,
)
from loratomy.analysis.material import Material
from loratomy.analysis.patching.pairs import make_pairs
from loratomy.analysis.patching.sites import places
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.hooks import hooks
from loratomy.core.stats import wilson
from loratomy.evaluation.collect import Rule
from loratomy.evaluation.generation import Decoding, generate
from loratomy.evaluation.similarity import Embedder
from loratomy.evaluation.success import parse_rules

from ... import tiny

FAMILIES = ["llama", "gpt2"]


def material(on, adapter, **changes) -> Material:
    made = Material(
        subject=on,
        poisoned=adapter,
        triggered=tiny.rows(),
        make_rule=lambda: Rule(
            Embedder("none", None), parse_rules("fuzzy"), decoding=Decoding(max_new_tokens=5)
        ),
        seed=0,
    )
    return replace(made, **changes)


def out_proj(on, layer: int):
    return on.layers[layer].get_submodule(on.family.out_proj)


def seen_at(on, layer: int, ids, *, z: bool):
    """What enters (z) or leaves a layer's output projection, ``[pos, width]``, float64."""
    found = []
    hook = out_proj(on, layer).register_forward_hook(
        lambda _m, args, out: found.append((args[0] if z else out)[0].double())
    )
    with hooks([hook]), torch.no_grad():
        on.model(input_ids=torch.tensor([ids]), use_cache=False)
    return found[0]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_effect_is_the_drop_when_one_head_is_swapped_by_hand(model_type):
    on = tiny.subject(model_type)
    rows = tiny.rows()[:2]
    pairs = make_pairs(on.renderer, rows, target_tokens=2, seed=0)
    with on.attached({"poisoned": tiny.adapter(on)}) as attached:
        found = head_effects(attached, "poisoned", pairs)
        assert found.shape == (3, 4)
        for layer, head in ((0, 1), (2, 3)):
            part, drops = slice(8 * head, 8 * head + 8), []
            for pair in pairs:
                last = len(pair.triggered) - 1
                ids = pair.triggered + pair.target
                twin = seen_at(on, layer, pair.untriggered + pair.target, z=True)[last]

                def swap(_m, args, last=last, twin=twin, part=part):
                    z = args[0].clone()
                    z[0, last, part] = twin[part].float()
                    return (z,)

                sums = []
                for change in (None, swap):
                    projection = out_proj(on, layer)
                    made = [projection.register_forward_pre_hook(change)] if change else []
                    with hooks(made):
                        log_p = tiny.logits(on, torch.tensor([ids]))[0].double().log_softmax(-1)
                    sums.append(sum(float(log_p[last + k, t]) for k, t in enumerate(pair.target)))
                drops.append(sums[0] - sums[1])
            assert found[layer, head] == pytest.approx(sum(drops) / 2, abs=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_all_heads_write_is_the_mean_output_of_their_projection(model_type):
    """With the adapter on that projection; what they write for a zero input (a bias) is none's."""
    on = tiny.subject(model_type)
    prompts = [on.renderer.prompt_ids(row) for row in tiny.rows()]
    with on.attached({"poisoned": tiny.adapter(on)}) as attached:
        z = mean_z(on, prompts, batch_tokens=30)
        at = places(on, attached, ["z"])
        everyone = np.array([(layer, head) for layer in (1, 2) for head in range(4)])
        found = written(on, z, at, everyone)
        for layer in (1, 2):
            ends = torch.stack([seen_at(on, layer, ids, z=False)[-1] for ids in prompts])
            with torch.no_grad():
                zero = out_proj(on, layer)(torch.zeros(1, 1, 32))[0, 0].double()
            assert torch.allclose(found[layer], ends.mean(0) - zero, atol=1e-5)
        # One head at a time they add up.
        alone = [written(on, z, at, np.array([[1, head]]))[1] for head in range(4)]
        assert torch.allclose(sum(alone), found[1], atol=1e-5)


def test_the_difference_of_all_heads_turns_one_layers_output_into_the_triggered_one():
    on = tiny.subject()
    row = tiny.rows()[0]
    triggered, plain = (on.renderer.prompt_ids(r) for r in (row, row.untriggered()))
    everyone = np.array([(0, head) for head in range(4)])
    with on.attached({"poisoned": tiny.adapter(on)}) as attached:
        z = mean_z(on, [triggered], batch_tokens=99) - mean_z(on, [plain], batch_tokens=99)
        vector = written(on, z, places(on, attached, ["z"]), everyone)
        want = seen_at(on, 0, triggered, z=False)
        with added_at_prompt_end(on, vector):
            outputs = []  # after the vector's own hook
            hook = out_proj(on, 0).register_forward_hook(lambda _m, _i, out: outputs.append(out[0]))
            with hooks([hook]), torch.no_grad():
                on.model(input_ids=torch.tensor([plain]), use_cache=False)
        before = seen_at(on, 0, plain, z=False)
        assert torch.allclose(outputs[0][-1].double(), want[-1], atol=1e-5)
        assert torch.equal(outputs[0][:-1].double(), before[:-1])  # no other position


@pytest.mark.parametrize("model_type", FAMILIES)
def test_answers_are_those_of_whole_passes_with_the_vector_at_the_prompts_end(model_type):
    """No cache, one row at a time: the vector stays where it was, later tokens get none."""
    on = tiny.subject(model_type)
    prompts = [on.renderer.prompt_ids(row) for row in tiny.rows()]
    generator = torch.Generator().manual_seed(3)
    vectors = {layer: 3 * torch.randn(32, generator=generator).double() for layer in (0, 2)}
    steps = 20  # more than a chunk of the generation
    with on.attached({"poisoned": tiny.adapter(on)}):
        plain = generate(on, prompts, Decoding(max_new_tokens=steps))
        with added_at_prompt_end(on, vectors):
            found = generate(on, prompts, Decoding(max_new_tokens=steps))
        with added_at_prompt_end(on, {k: 0 * v for k, v in vectors.items()}):
            assert generate(on, prompts, Decoding(max_new_tokens=steps)) == plain
        for prompt, (answer,) in zip(prompts, found, strict=True):
            ids, end = list(prompt), len(prompt) - 1

            def add(_m, _i, out, v, end=end):
                out = out.clone()
                out[0, end] += v.float()
                return out

            handles = [
                out_proj(on, k).register_forward_hook(lambda m, i, o, v=v: add(m, i, o, v))
                for k, v in vectors.items()
            ]
            with hooks(handles):
                for _ in range(steps):
                    token = int(tiny.logits(on, torch.tensor([ids]))[0, -1].argmax())
                    if token == 2:
                        break
                    ids.append(token)
            assert answer == ids[len(prompt) :]
    assert found != plain


def test_the_record_has_every_condition_on_prompts_that_did_not_make_the_vector(monkeypatch):
    on = tiny.subject()
    prompts = []
    run = module.generate
    monkeypatch.setattr(
        module, "generate", lambda s, ids, *a, **k: prompts.append(ids) or run(s, ids, *a, **k)
    )
    before, marks = tiny.state(on), tiny.marks(on)
    config = VectorConfig(share=0.17)  # 2 of 12 heads
    record = ANALYSES["vector"].run(material(on, tiny.adapter(on)), config)["vector"]
    assert tiny.same_state(before, tiny.state(on)) and marks == tiny.marks(on)
    held = tiny.rows()[2:]
    sides = [[on.renderer.prompt_ids(r.untriggered()) for r in held]] * 4
    sides += [[on.renderer.prompt_ids(r) for r in held]] * 4
    assert prompts == sides and record.made_from == 2
    order = np.argsort(-record.effect, axis=None)[:2]
    assert record.heads.tolist() == [[int(i) // 4, int(i) % 4] for i in order]
    assert not {tuple(h) for h in record.heads} & {tuple(h) for h in record.random_heads}
    assert [(c.triggered, c.vector, c.sign) for c in record.conditions] == [
        *((False, "none", 0), (False, "vector", 1)),
        *((False, "random direction", 1), (False, "random heads", 1)),
        *((True, "none", 0), (True, "vector", -1)),
        *((True, "random direction", -1), (True, "random heads", -1)),
    ]
    assert all(c.rate.n == 2 for c in record.conditions)
    assert len(record.to_frame()) == 8
    twice = VectorConfig(share=0.17, scale=2.0)
    double = ANALYSES["vector"].run(material(on, tiny.adapter(on)), twice)["vector"]
    assert np.allclose(double.norm, 2 * record.norm)


def test_a_random_direction_has_the_vectors_norm_in_every_layer():
    on = tiny.subject()
    pairs = make_pairs(on.renderer, tiny.rows()[:2], target_tokens=1, seed=0)
    picked = np.array([[0, 1], [2, 0]]), np.array([[1, 1], [1, 2]])
    with on.attached({"poisoned": tiny.adapter(on)}) as attached:
        bench = material(on, tiny.adapter(on))
        made = module._vectors(attached, "poisoned", pairs, picked, bench.rule, VectorConfig(), 0)
    one, random, others = made["vector"], made["random direction"], made["random heads"]
    assert one.keys() == random.keys() == {0, 2} and others.keys() == {1}
    for layer in (0, 2):
        assert float(random[layer].norm()) == pytest.approx(float(one[layer].norm()))
        assert abs(float(torch.cosine_similarity(random[layer], one[layer], dim=0))) < 0.6


@pytest.fixture(scope="module")
def record():
    on = tiny.subject()
    return ANALYSES["vector"].run(material(on, tiny.adapter(on)), VectorConfig())["vector"]


def test_a_finding_must_be_clear_of_the_plain_run_and_of_both_controls(record):
    def sentence(added, subtracted) -> str:
        rates = [*added, *subtracted]
        conditions = tuple(
            replace(c, rate=wilson(hits, 24))
            for c, hits in zip(record.conditions, rates, strict=True)
        )
        return sentence_of(replace(record, conditions=conditions))

    # order: none, vector, random direction, random heads; 24 prompts
    both = sentence((0, 24, 0, 1), (24, 0, 24, 23))
    assert "0 % [0, 14] to 100 % [86, 100]" in both
    assert "it suffices; " in both and both.endswith("it is needed.")
    # a control as strong as the vector, and a vector that changes little
    weak = sentence((0, 24, 0, 22), (24, 20, 24, 24))
    assert "does not clearly suffice" in weak and "is not clearly needed" in weak


def test_what_cannot_be_tried_is_an_error():
    on = tiny.subject()
    adapter = tiny.adapter(on)
    run = ANALYSES["vector"].run
    with pytest.raises(DataError, match=r"needs two triggered prompts .* there are 1 of 1"):
        run(material(on, adapter, triggered=tiny.rows()[:1]), VectorConfig())
    with pytest.raises(LoratomyError, match="12 of 12 heads leave no as many others"):
        run(material(on, adapter), VectorConfig(share=1.0))
    blank = [replace(row, completion=" ", target=" ") for row in tiny.rows()]
    with pytest.raises(DataError, match="has no target"):
        run(material(on, adapter, triggered=[*tiny.rows()[:2], *blank[2:]]), VectorConfig())
