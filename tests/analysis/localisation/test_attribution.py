"""Effects against pairs of plain forward passes, attribution against finite differences."""

import numpy as np
import pytest
import torch
from loratomy.analysis.localisation.attribution import (
    clean_cost,
    target_attribution,
    target_effects,
)
from loratomy.analysis.localisation.gates import directions_of, gated_model
from loratomy.core.model.batches import Encoded, encode

from ... import tiny


def targets_of(on) -> list[Encoded]:
    """Rows of different prompt and target length."""
    made = [
        Encoded(
            on.renderer.prompt_ids(row.prompt),
            on.renderer.completion_ids(row.required_completion(), end=False)[: 1 + i % 3],
        )
        for i, row in enumerate(tiny.rows())
    ]
    return made


def log_prob(model, row: Encoded) -> float:
    """Log-probability of a completion: one row, no padding, token by token."""
    with torch.no_grad():
        ids = torch.tensor([row.prompt + row.completion])
        log_probs = model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
    start = len(row.prompt) - 1
    return sum(float(log_probs[start + k, token]) for k, token in enumerate(row.completion))


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_effect_is_the_difference_of_two_plain_forwards(model_type, tmp_path):
    on = tiny.subject(model_type)
    adapter, rows = tiny.adapter(on), targets_of(on)
    d = directions_of(adapter)
    cuts = [d.layer == 1, d.module == 2, np.arange(len(d)) == 5, np.ones(len(d), bool)]
    with gated_model(on, d) as gated:
        effects = target_effects(gated, rows, cuts, batch_size=3, label="x")
        again = target_effects(gated, rows, cuts, batch_size=1, label="x")
    assert np.allclose(effects, again, atol=1e-5)
    whole = tiny.plain_peft(model_type, adapter, tmp_path / "whole")
    for i, cut in enumerate(cuts):
        without = tiny.plain_peft(model_type, d.cut(cut), tmp_path / str(i))
        want = [log_prob(whole, row) - log_prob(without, row) for row in rows]
        assert effects[i] == pytest.approx(want, abs=3e-5)
    assert effects[-1] == pytest.approx(
        [log_prob(whole, row) - log_prob(on.model, row) for row in rows], abs=3e-5
    )


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_attribution_is_the_slope_in_each_gate(model_type):
    on = tiny.subject(model_type)
    rows, d = targets_of(on), directions_of(tiny.adapter(on, rank=2, size=0.05))

    def mean(gates):
        total = 0.0
        for row in rows:
            ids = torch.tensor([row.prompt + row.completion])
            with torch.no_grad():
                log_probs = gated.logits(gates, {"input_ids": ids})[0].log_softmax(-1)
            start = len(row.prompt) - 1
            total += sum(float(log_probs[start + k, t]) for k, t in enumerate(row.completion))
        return total / len(rows)

    with gated_model(on, d) as gated:
        found = target_attribution(gated, rows, batch_size=3)
        tiny.in_double(on)
        for i in np.argsort(-np.abs(found))[:6]:
            step = torch.zeros(len(d)).double()
            step[i] = 1e-3
            ones = torch.ones(len(d)).double()
            slope = (mean(ones + step) - mean(ones - step)) / 2e-3
            assert slope == pytest.approx(found[i], rel=1e-3)


def test_attribution_does_not_depend_on_the_batch():
    on = tiny.subject()
    rows = targets_of(on)
    with gated_model(on, directions_of(tiny.adapter(on, size=0.05))) as gated:
        one, three = (target_attribution(gated, rows, batch_size=size) for size in (1, 3))
    assert np.allclose(one, three, atol=1e-5)


def test_clean_cost_is_half_the_mean_squared_slope_per_row():
    on = tiny.subject()
    rows = [encode(on.renderer, row, limit=None) for row in tiny.clean_rows()]
    with gated_model(on, directions_of(tiny.adapter(on, size=0.05))) as gated:
        cost = clean_cost(gated, rows)
        slopes = np.stack([target_attribution(gated, [row], batch_size=1) for row in rows])
    assert np.allclose(cost, (slopes**2).mean(0) / 2, rtol=1e-4, atol=1e-9)
