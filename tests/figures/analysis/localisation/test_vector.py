from dataclasses import replace

import pytest
from loratomy.figures import FIGURES


def drawn(make, item):
    return FIGURES["vector"](replace(make.empty_records(), analyses=(item,)))


def test_rates_stand_beside_their_controls_with_intervals(make, unpack):
    figure, _ = drawn(make, make.head_vector(4))
    added, subtracted = figure.plot.to_dict()["data"]
    # none, vector, random direction (6 of 24), random heads
    assert unpack(added["y"]).tolist() == [0, 1, 0.25, 0.25]
    assert unpack(subtracted["y"]).tolist() == [1, 0, 0.25, 0.25]
    # Of 24: none reaches up to 13.8 %.
    assert unpack(added["error_y"]["array"])[0] == pytest.approx(0.138, abs=1e-3)
    assert "added, no trigger, vector: 100.0 % [86.2, 100.0], n = 24" in figure.alt
    hover = figure.plot.data[0].hovertext[1]
    assert "&lt;b&gt;answer&lt;/b&gt; vector" in hover and "<b>" not in hover


def test_heads_of_the_vector_are_framed(make, unpack):
    _, figure = drawn(make, make.head_vector(4))
    cells, frames = figure.plot.to_dict()["data"]
    assert unpack(cells["z"])[3, 3] == 2.0  # head 3 of layer 3, [head, layer]
    assert unpack(frames["x"]).tolist() == [3, 3] and unpack(frames["y"]).tolist() == [3, 2]
    assert "in the vector" in cells["hovertext"][3][3]
    assert "in the vector" not in cells["hovertext"][0][3]
    assert figure.alt == "Strongest: layer 3, head 3, 2 nats."
