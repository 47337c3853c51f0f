"""Residuals read by hooks in padded batches against the model's own hidden states, one by one."""

import numpy as np
import pytest
import torch
from loratomy.analysis.activations.residuals import batches, residuals
from loratomy.core.errors import DataError, LoratomyError

from ... import tiny

PROMPTS = [[1, 9, 12, 20, 31], [1, 8, 7], [1, 30, 22, 17, 40, 11, 25, 9, 13], [1, 14]]


def places(prompts):
    """Last, mean, the second token, and a place that the first prompt lacks."""
    return [
        [[len(p) - 1], list(range(len(p))), [1], [0, 1] if i else []] for i, p in enumerate(prompts)
    ]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "mixtral"])
def test_residuals_are_the_hidden_states_of_each_prompt_alone(model_type):
    on = tiny.subject(model_type)
    with on.attached({"x": tiny.adapter(on)}):
        found = [
            residuals(on, PROMPTS, places(PROMPTS), batch_tokens=size, label="x")
            for size in (1, 18, 4096)
        ]
        for row, ids in enumerate(PROMPTS):
            with torch.no_grad():
                out = on.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
            states = [h[0].numpy() for h in out.hidden_states[1:]]
            ours = torch.tensor(found[0][row, -1, :3])
            states[-1] = None  # the model shows it after the final norm only
            normed = on.model.model.norm(ours).detach().numpy()
            last = out.hidden_states[-1][0].numpy()
            assert np.allclose(normed[[0, 2]], last[[-1, 1]], atol=2e-5)
            for layer, h in enumerate(states[:-1]):
                want = np.stack([h[-1], h.mean(0), h[1], h[:2].mean(0)])
                assert np.allclose(found[0][row, layer, :3], want[:3], atol=2e-5)
                if row:
                    assert np.allclose(found[0][row, layer, 3], want[3], atol=2e-5)
    assert np.isnan(found[0][0, :, 3]).all() and np.isfinite(found[0][1:]).all()
    for other in found[1:]:
        assert np.allclose(found[0], other, atol=5e-5, equal_nan=True)  # values up to 40


def test_batches_hold_every_prompt_once_within_their_budget():
    on = tiny.subject()
    parts = batches(on, PROMPTS, batch_tokens=10)
    assert sorted(row for part in parts for row in part.rows) == [0, 1, 2, 3]
    for part in parts:
        assert part.ids.numel() <= 10
        for row, ids, mask in zip(part.rows, part.ids, part.mask, strict=True):
            assert ids[mask].tolist() == PROMPTS[row]


def test_a_value_that_is_not_finite_names_its_layer_and_leaves_the_model_alone():
    on = tiny.subject()
    marks = tiny.marks(on)
    on.model.model.layers[1].mlp.down_proj.weight[3, 4] = torch.inf
    with pytest.raises(LoratomyError, match=r"what layer 1 leaves is not finite on prompt \d"):
        residuals(on, PROMPTS, places(PROMPTS), batch_tokens=64, label="x")
    assert tiny.marks(on) == marks
    on.model.model.embed_tokens.weight[17] = torch.nan  # of prompt 3 alone
    with pytest.raises(
        LoratomyError, match="what enters the first layer is not finite on prompt 3"
    ):
        residuals(on, PROMPTS, places(PROMPTS), batch_tokens=4096, label="x")


def test_what_cannot_be_read_is_an_error():
    on = tiny.subject()
    for prompts, spots, said in (
        ([], [], "no prompts"),
        ([[1], []], [[[0]], [[]]], "prompt 2 has no tokens"),
        ([[1, 2]], [[[2]]], r"prompt 1 of 2 tokens cannot be read at \[\[2\]\]"),
        ([[1] * 65], [[[0]]], "has 65 tokens, the model's context 64"),
    ):
        with pytest.raises(DataError, match=said):
            residuals(on, prompts, spots, batch_tokens=64, label="x")
