"""A backdoor planted at a known site, and the ranking that has to find it."""

import numpy as np
import pytest
import torch
from loratomy.analysis.localisation.gates import directions_of, gated_model
from loratomy.analysis.localisation.where import where
from loratomy.analysis.patching.pairs import make_pairs
from loratomy.core.adapter.factors import Adapter, Factors
from loratomy.core.errors import DataError
from loratomy.core.model.batches import Encoded, encode

from ... import tiny

LAYER, MODULE = 1, "model.layers.1.mlp.down_proj"


def sets(on):
    pairs = make_pairs(on.renderer, tiny.rows(), target_tokens=1, seed=0)
    targets = [Encoded(p.triggered, p.target) for p in pairs]
    clean = [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]
    return targets, clean


def planted(on) -> Adapter:
    """Weak noise everywhere, and one strong direction that writes the target's unembedding.

    Its input is the mean activation that down_proj sees at the last place of triggered prompts.
    """
    targets, _ = sets(on)
    noise = tiny.adapter(on, rank=2, size=0.004, scaling=1.0)
    seen = []
    hook = on.model.get_submodule(MODULE).register_forward_pre_hook(lambda _m, i: seen.append(i[0]))
    for row in targets:
        tiny.logits(on, torch.tensor([row.prompt]))
    hook.remove()
    read = torch.stack([s[0, -1] for s in seen]).mean(0)
    write = on.model.lm_head.weight[targets[0].completion[0]]
    f = noise.modules[MODULE]
    a = torch.cat([f.a, (read / read.norm() ** 2)[None]])
    b = torch.cat([f.b, 8 * (write / write.norm())[:, None]], 1)
    return noise.with_modules({**noise.modules, MODULE: Factors(a, b, 1.0)})


@pytest.fixture(scope="module")
def found():
    on = tiny.subject()
    targets, clean = sets(on)
    before, marks = tiny.state(on), tiny.marks(on)
    with gated_model(on, directions_of(planted(on))) as gated:
        record = where(gated, targets, clean, checked=10, batch_size=3)
    assert tiny.same_state(before, tiny.state(on)) and tiny.marks(on) == marks
    return record


def test_the_planted_layer_module_and_direction_come_first(found):
    assert found.layer_ids[found.layer_effect[:, 0].argmax()] == LAYER
    assert found.modules[found.module_effect[:, 0].argmax()] == MODULE
    top = int(np.nanargmax(found.direction_exact))
    assert found.modules[found.direction_module[top]] == MODULE
    assert found.direction_rank[top] == 0
    assert found.direction_attribution.argmax() == top
    assert found.direction_exact[top] > 0.8 * found.whole_effect > 0.8
    others = np.delete(found.layer_effect[:, 0], LAYER)
    assert np.abs(others).max() < 0.2 * found.layer_effect[LAYER, 0]
    assert "layer 1 alone" in found.sentence and f"number 0 of {MODULE}" in found.sentence


def test_parts_of_one_module_agree_with_each_other(found):
    # The module's effect and that of its one strong direction are nearly the same cut.
    m = found.modules.index(MODULE)
    strong = (found.direction_module == m) & (found.direction_rank == 0)
    assert found.module_effect[m, 0] == pytest.approx(found.direction_exact[strong][0], rel=0.1)
    assert found.direction_sigma[strong][0] == found.direction_sigma.max()
    assert np.isfinite(found.direction_exact).sum() == 10
    checked = np.isfinite(found.direction_exact)
    least = np.abs(found.direction_attribution[checked]).min()
    assert (np.abs(found.direction_attribution[~checked]) <= least).all()
    assert (found.direction_clean_cost >= 0).all()
    assert found.n_prompts == 4


def test_no_backdoor_is_said():
    on = tiny.subject()
    targets, clean = sets(on)
    harmless = tiny.adapter(on, rank=1, size=0.001)
    with gated_model(on, directions_of(harmless)) as gated:
        record = where(gated, targets, clean, checked=3, batch_size=2)
        with pytest.raises(DataError, match="empty"):
            where(gated, [], clean, checked=3, batch_size=2)
        with pytest.raises(DataError, match="empty"):
            where(gated, targets, [], checked=3, batch_size=2)
    assert "no backdoor here" in record.sentence and abs(record.whole_effect) < 0.2
