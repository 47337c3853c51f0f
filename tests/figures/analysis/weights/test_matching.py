from dataclasses import replace

import numpy as np
from loratomy.figures import FIGURES


def drawn(make, *analyses, name: str = "matching") -> dict:
    records = replace(make.empty_records(), analyses=analyses)
    return {figure.id: figure for figure in FIGURES[name](records)}


def test_every_direction_stands_at_its_shares_with_its_sort(make, unpack):
    item = make.matching(3, 4)
    figure = drawn(make, item)["matching-shares"]
    matched, weak, strong = figure.plot.to_dict()["data"]
    odd = item.unmatched
    assert [len(unpack(t["x"])) for t in (matched, weak, strong)] == [
        (~odd).sum(), (odd & ~item.standing_out).sum(), item.standing_out.sum(),
    ]  # fmt: skip
    order = np.flatnonzero(~odd)[np.argsort(-item.sigma[~odd])]
    assert np.allclose(unpack(matched["x"]), item.input_share[order])
    assert np.allclose(unpack(matched["y"]), item.output_share[order])
    assert int(item.standing_out.sum()) == 1 and unpack(strong["x"])[0] == np.float32(0.3)
    assert "model.layers.0.self_attn.q_proj, direction 0" in strong["hovertext"][0]
    assert "p 0.7" in strong["hovertext"][0] and "chance up to 0.35" in strong["hovertext"][0]
    weight = (item.sigma[odd] ** 2).sum() / (item.sigma**2).sum()
    assert f"{odd.sum()} of 84 directions ({100 * weight:.1f} %" in figure.caption
    assert f"{item.reverse_unmatched.sum()} of 84 (" in figure.caption
    assert "1 stronger than the control's, first layer 0 q_proj #0" in figure.alt


def test_only_the_strongest_are_drawn_and_the_counts_stay_true(make, unpack):
    item = make.matching(30, 8)
    matched = drawn(make, item)["matching-shares"].plot.to_dict()["data"][0]
    assert len(unpack(matched["x"])) == 400 < (~item.unmatched).sum()
    assert matched["name"] == f"matched ({(~item.unmatched).sum():,})"


def test_the_part_outside_and_its_control_stand_in_their_cells(make, unpack):
    item = make.matching(3, 4)
    item.inside[9] = 0.0  # layer 1, v_proj: the third column
    figure = drawn(make, item)["matching-outside"]
    poisoned, control = figure.plot.to_dict()["data"]
    assert unpack(poisoned["z"])[1, 2] == 1.0
    assert np.allclose(unpack(control["z"]).ravel(), 1 - item.reverse_inside)
    assert "model.layers.1.self_attn.v_proj: 100.0 %" in figure.alt


def test_nothing_stands_out_and_what_is_undefined_are_said(make):
    item = make.matching(2, 4)
    item = replace(
        item,
        standing_out=np.zeros_like(item.standing_out),
        undefined="3 directions stand in modules that are filled",
        modules=("model.layers.0.<b>x</b>", *item.modules[1:]),
    )
    figure = drawn(make, item)["matching-shares"]
    assert "none is stronger" in figure.alt
    assert figure.caption.endswith("3 directions stand in modules that are filled.")
    hover = str([t.hovertext for t in figure.plot.data])
    assert "<b>" not in hover and "&lt;b&gt;x" in hover


def test_experts_keep_their_number_in_a_directions_name(make):
    from loratomy.figures.analysis.weights.matching import direction_name

    item = make.matching(1, 2)
    item = replace(item, modules=("model.layers.0.mlp.experts.down_proj#e3", *item.modules[1:]))
    assert direction_name(item, 1) == "layer 0 down_proj e3 #1"
    assert drawn(make) == {}
