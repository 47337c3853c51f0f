"""A backdoor planted in three neurons of one module, which poison unlearning has to change most."""

import numpy as np
import pytest
import torch
from loratomy.analysis.neurons.ascent import Ascent
from loratomy.analysis.neurons.neurons import dealt, neuron_change
from loratomy.analysis.patching.pairs import make_pairs
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import DataError
from loratomy.core.model.batches import Encoded, encode
from loratomy.core.records.io import load_record, save_record

from ... import tiny

MODULE, FEW = "model.layers.2.mlp.down_proj", 3
ASCENT = Ascent(steps=30, stride=0.02, collapse=0.1, batch_size=3)


def sets(on):
    pairs = make_pairs(on.renderer, tiny.rows(), target_tokens=1, seed=0)
    targets = [Encoded(p.triggered, p.target) for p in pairs]
    return targets, [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]


def planted(on) -> tuple[Adapter, np.ndarray]:
    """Weak noise everywhere, and one direction that writes the target through three neurons.

    They are the three strongest entries of the target's unembedding, written equally; what it
    reads is the mean input of the module at the last place of triggered prompts.
    """
    targets, _ = sets(on)
    noise = tiny.adapter(on, rank=2, size=0.004, scaling=1.0)
    seen = []
    hook = on.model.get_submodule(MODULE).register_forward_pre_hook(lambda _m, i: seen.append(i[0]))
    for row in targets:
        tiny.logits(on, torch.tensor([row.prompt]))
    hook.remove()
    read = torch.stack([s[0, -1] for s in seen]).mean(0)
    unembedding = on.model.lm_head.weight[targets[0].completion[0]]
    few = unembedding.abs().topk(FEW).indices
    write = torch.zeros_like(unembedding)
    write[few] = unembedding[few].sign()
    f = noise.modules[MODULE]
    a = torch.cat([f.a, (read / read.norm() ** 2)[None]])
    b = torch.cat([f.b, 20 * (write / write.norm())[:, None]], 1)
    return noise.with_modules({**noise.modules, MODULE: Factors(a, b, 1.0)}), few.numpy()


@pytest.fixture(scope="module")
def found():
    on = tiny.subject()
    targets, clean = sets(on)
    adapter, few = planted(on)
    before, marks = tiny.state(on), tiny.marks(on)
    record = neuron_change(on, adapter, targets, clean, ascent=ASCENT, seed=0)
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks
    again = neuron_change(on, adapter, targets, clean, ascent=ASCENT, seed=0)
    return record, again, few


def test_poison_unlearning_changes_the_planted_neurons_most(found):
    record, _, few = found
    poison = next(i for i, u in enumerate(record.unlearnings) if u.name == "poison")
    assert record.unlearnings[poison].reached
    assert record.unlearnings[poison].right[0] >= 0.75  # of 4 prompts
    module = record.modules.index(MODULE)
    here = record.nwc[poison][record.neuron_module == module]
    assert set(np.argsort(-here)[: FEW + 1]) > set(few)
    others = np.delete(here, few)
    assert here[few].mean() > 1.5 * others.mean() and here[few].min() > np.percentile(others, 95)
    means = np.bincount(record.neuron_module, record.nwc[poison]) / np.bincount(
        record.neuron_module
    )
    assert means.argmax() == module
    strongest = int(record.direction_sigma.argmax())
    assert record.direction_module[strongest] == module
    assert np.abs(record.strength[poison]).argmax() == strongest
    assert record.strength[poison, strongest] < 0  # unlearned: the direction got weaker


def test_the_same_seed_is_the_same_record(found, tmp_path):
    record, again, _ = found
    for name, one in (("a", record), ("b", again)):
        save_record(one, tmp_path, name)
    for suffix in ("json", "safetensors"):
        first, second = ((tmp_path / f"{n}.{suffix}").read_bytes() for n in "ab")
        assert first.replace(b"a.safetensors", b"b.safetensors") == second
    back = load_record(type(record), tmp_path, "a")
    np.testing.assert_array_equal(back.nwc, record.nwc)


def test_the_record_is_whole(found):
    record, _, _ = found
    assert [u.name for u in record.unlearnings] == ["clean", "poison", "control"]
    assert record.unlearnings[2].steps == max(1, record.unlearnings[0].steps)
    for u in record.unlearnings:
        assert len(u.loss) == len(u.right) == u.steps + 1
        assert u.steps == 0 or u.loss[-1] > u.loss[0]
    assert (record.nwc.shape[1],) == record.size.shape == record.neuron_module.shape


def test_every_table_compares_every_pair_and_the_control_is_held_fixed_once():
    on = tiny.subject("mixtral")
    targets, clean = sets(on)
    adapter = tiny.adapter(on, size=0.1)
    with on.attached({"x": adapter}):  # what it says anyway is its poison here, and its clean skill
        own = [int(tiny.logits(on, torch.tensor([row.prompt]))[0, -1].argmax()) for row in clean]
        wrong = [
            int(tiny.logits(on, torch.tensor([row.prompt]))[0, -1].argmax()) for row in targets
        ]
    clean = [Encoded(row.prompt, [t]) for row, t in zip(clean, own, strict=True)]
    targets = [Encoded(row.prompt, [t]) for row, t in zip(targets, wrong, strict=True)]
    record = neuron_change(on, adapter, targets, clean, ascent=ASCENT, seed=0)
    pairs = [("clean", "poison"), ("control", "poison"), ("clean", "control")]
    assert [(a.over, a.first, a.second) for a in record.associations] == [
        (over, *pair) for over in ("neurons", "strength", "signed", "off") for pair in pairs
    ]
    assert [bool(np.isfinite(a.given_control[0])) for a in record.associations] == 4 * [
        True, False, False
    ]  # fmt: skip
    assert not record.undefined
    experts = {name for name in record.modules if "#e" in name}
    assert len(experts) == 3 * 2 * 4
    # Directions of expert e are compared inside that expert's module.
    for m, sigma in zip(record.direction_module, record.direction_sigma, strict=True):
        name, _, expert = record.modules[m].partition("#e")
        f = adapter.modules[name]
        dense = f.dense()[int(expert)] if expert else f.dense()
        assert torch.linalg.svdvals(dense.double()).sub(sigma).abs().min() < 1e-5


def test_nothing_to_unlearn_is_said_and_undefined():
    on = tiny.subject()
    targets, clean = sets(on)
    adapter = tiny.adapter(on, size=0.05)
    with on.attached({"x": adapter}):
        worst = [
            int(tiny.logits(on, torch.tensor([row.prompt]))[0, -1].argmin()) for row in targets
        ]
    never = [Encoded(row.prompt, [t]) for row, t in zip(targets, worst, strict=True)]
    record = neuron_change(on, adapter, never, clean, ascent=ASCENT, seed=0)
    assert "poison unlearning: none of the completions" in record.undefined
    assert np.isnan(record.nwc[1]).all() and np.isnan(record.strength[1]).all()
    assert all("poison" not in (a.first, a.second) for a in record.associations)
    with pytest.raises(DataError, match="empty"):
        neuron_change(on, adapter, [], clean, ascent=ASCENT, seed=0)


def test_the_controls_tokens_are_the_same_in_another_order():
    rows = [Encoded([1, 2], [3, 4, 5]), Encoded([6], [7]), Encoded([8], [9, 10])]
    shuffled = dealt(rows, seed=1)
    assert [row.prompt for row in shuffled] == [row.prompt for row in rows]
    assert [len(row.completion) for row in shuffled] == [3, 1, 2]
    assert sorted(t for row in shuffled for t in row.completion) == [3, 4, 5, 7, 9, 10]
    assert shuffled == dealt(rows, seed=1) != rows


def test_unlearning_the_same_thing_changes_directions_with_the_same_sign():
    on = tiny.subject()
    targets, _ = sets(on)
    adapter, _ = planted(on)
    with on.attached({"x": adapter}):
        logits = [tiny.logits(on, torch.tensor([row.prompt]))[0, -1] for row in targets]
    same = [Encoded(row.prompt, [int(v.argmax())]) for row, v in zip(targets, logits, strict=True)]
    record = neuron_change(on, adapter, same, same, ascent=ASCENT, seed=0)
    signed = {(a.first, a.second): a for a in record.associations if a.over == "signed"}
    assert signed["clean", "poison"].spearman[0] > 0.95
    strongest = int(record.direction_sigma.argmax())
    assert record.strength[0, strongest] < 0 and record.strength[1, strongest] < 0
