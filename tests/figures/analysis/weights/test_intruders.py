from dataclasses import replace

import numpy as np
from loratomy.figures import FIGURES


def drawn(make, *analyses) -> dict:
    records = replace(make.empty_records(), analyses=analyses)
    return {figure.id: figure for figure in FIGURES["intruders"](records)}


def test_counts_stand_in_their_cells_for_every_adapter(make, unpack):
    clean, poisoned = make.intruders("clean", 4), make.intruders("poisoned", 4)
    poisoned.intruders[8] = 5  # layer 1, k_proj
    figure = drawn(make, clean, poisoned)["intruders-map"]
    left, right = figure.plot.to_dict()["data"]
    assert unpack(left["z"])[3].tolist() == [1] * 7 and unpack(left["z"])[1, 1] == 0
    assert unpack(right["z"])[1, 1] == 5
    assert "intruders 5<br>undecided 0" in right["hovertext"][1][1]
    assert "intruders 0<br>undecided 1" in left["hovertext"][0][0]
    assert "smallest largest cosine 0.2" in left["hovertext"][3][0]
    assert figure.alt == "clean: 7 intruders; poisoned: 12 intruders."
    assert "12 intruders in 8 modules of 28, 1 undecided, 28 weights by bounds" in figure.caption
    assert "largest residual 3×10⁻⁶" in figure.caption


def test_the_curve_counts_cosines_below_each_threshold(make, unpack):
    item = make.intruders("poisoned", 4)
    figure = drawn(make, item)["intruders-threshold"]
    band, line = figure.plot.to_dict()["data"]
    counts = unpack(line["y"])
    assert counts[50] == (item.cosine_upper < 0.5).sum() == 7
    assert counts[65] == (item.cosine_upper < 0.65).sum()
    assert unpack(band["y"])[50] == (item.cosine < 0.5).sum() == 8
    assert "7 below 0.5" in figure.alt
    exact = replace(item, cosine_upper=item.cosine)
    assert len(drawn(make, exact)["intruders-threshold"].plot.data) == 1  # no band


def test_experts_are_summed_and_vectors_that_are_not_there_are_not_counted(make, unpack):
    item = make.intruders("clean", 1)
    names = tuple(f"model.layers.0.mlp.experts.down_proj#e{i}" for i in range(7))
    item.cosine[:, 5:] = item.cosine_upper[:, 5:] = np.nan
    item = replace(item, modules=names)
    figures = drawn(make, item)
    cell = figures["intruders-map"].plot.to_dict()["data"][0]
    assert unpack(cell["z"]).tolist() == [[float(item.intruders.sum())]]
    assert "How many of 35 vectors" in figures["intruders-threshold"].caption
    assert drawn(make) == {}
