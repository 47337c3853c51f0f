"""The methods' votes against hand arithmetic, and the verdict that must stay silent at times."""

from dataclasses import replace

import numpy as np
import pytest
from loratomy.analysis.localisation.votes import concordance, verdict, with_votes
from loratomy.core.records.patching import Vote

from ...figures import records_factory as make


def vote(*score, causal=True, method="m"):
    return Vote(method=method, what="w", score=np.array(score, float), n=4, causal=causal)


def test_kendalls_w_by_hand():
    # Ranks 1 2 3, 1 2 3, 2 1 3: sums 4 5 9, mean 6, S = 4 + 1 + 9 = 14; 12*14 / (9*24) = 7/9.
    votes = [vote(1, 2, 3), vote(10, 20, 30), vote(2, 1, 3)]
    assert concordance(votes) == pytest.approx(7 / 9)
    assert concordance([vote(1, 2, 3), vote(4, 5, 6)]) == pytest.approx(1)
    assert concordance([vote(1, 2, 3), vote(3, 2, 1)]) == pytest.approx(0)
    # Ties: 1.5 1.5 3 and 1 2 3: sums 2.5 3.5 6, S = 2.25 + .25 + 4 = 6.5; 78 / (96 - 2*6).
    assert concordance([vote(1, 1, 2), vote(1, 2, 3)]) == pytest.approx(78 / 84)
    assert np.isnan(concordance([vote(1, 2, np.nan), vote(1, 2, 3)]))


def test_a_place_is_named_only_where_more_methods_meet_than_chance_brings():
    names = [f"layer {i}" for i in range(8)]
    peak = np.eye(8)
    three = [vote(*peak[2], method=f"m{i}") for i in range(3)]
    found = verdict("layer", names, three)
    # Three of three at one of eight layers by chance: at most 8 * (1/8)^3 = 1/64.
    assert found.named == "layer 2" and found.chance == pytest.approx(1 / 64)
    assert found.mean_rank[2] == 1 and "3 of 3 causal methods" in found.sentence
    apart = verdict("layer", names, [vote(*peak[i], method=f"m{i}") for i in range(3)])
    assert apart.named == "" and "do not agree" in apart.sentence
    for i in range(3):
        assert f"m{i}: layer {i}" in apart.sentence  # each method's own choice is said
    two = verdict("layer", names[:3], [vote(*np.eye(3)[0]), vote(*np.eye(3)[0])])
    assert two.named == "" and two.chance == pytest.approx(1 / 3)  # 3 * (1/3)^2


def test_weights_are_shown_but_do_not_decide():
    names = [f"layer {i}" for i in range(8)]
    peak = np.eye(8)
    votes = [vote(*peak[2])] + [vote(*peak[5], causal=False)] * 4
    found = verdict("layer", names, votes)
    assert found.named == "" and "no verdict" in found.sentence and len(found.votes) == 5
    silent = verdict("layer", names, [*[vote(*peak[2])] * 3, vote(*np.zeros(8), method="mute")])
    assert silent.named == "layer 2" and "Silent: mute" in silent.sentence


def test_votes_are_read_from_the_other_records():
    where = make.where(6, 3)
    patching = make.patching_map(6, setting="adapter")
    difference = make.difference(6, 3)
    found = with_votes(where, {"patching": [patching], "difference": [difference]})
    layers = found.layers_verdict
    assert [v.method for v in layers.votes] == [
        "ablation", "patching (adapter, residual, denoising)", "difference",
    ]  # fmt: skip
    assert np.array_equal(layers.votes[0].score, where.layer_effect[:, 0])
    # The blocks' outputs are sites 1 and 2; the forced tokens' column is undefined throughout.
    best = np.nanmax(patching.recovery[1:3], axis=(0, 2))
    assert np.allclose(layers.votes[1].score, best)
    square = np.bincount(difference.layers, difference.difference_norm**2)
    assert np.allclose(layers.votes[2].score, np.sqrt(square))
    assert not layers.votes[2].causal and layers.votes[1].n == len(patching.prompts)
    modules = found.modules_verdict
    assert modules.names == where.modules
    assert np.allclose(modules.votes[-1].score, difference.difference_norm)
    nothing = np.full_like(patching.recovery, np.nan)
    undefined = with_votes(where, {"patching": [replace(patching, recovery=nothing)]})
    assert "no verdict" in undefined.layers_verdict.sentence
    assert np.isnan(undefined.layers_verdict.votes[1].score).all()  # shown as silent
    parts = replace(
        patching, kind="modules", sites=("q_proj", "o_proj", "down_proj"), setting="adapter"
    )
    both = with_votes(where, {"modules": [parts]}).modules_verdict
    name = next(n for n in both.names if n.endswith("layers.2.self_attn.o_proj"))
    got = both.votes[1].score[both.names.index(name)]
    assert got == pytest.approx(np.nanmax(parts.recovery[1, 2]))
