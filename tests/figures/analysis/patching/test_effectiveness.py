from dataclasses import replace

import numpy as np
import pytest
from loratomy.core.stats import wilson
from loratomy.figures import FIGURES


def drawn(make, item):
    return FIGURES["effectiveness"](replace(make.empty_records(), analyses=(item,)))[0]


def test_rates_and_intervals_stand_at_their_layers(make, unpack):
    item = make.effectiveness(4)
    plot = drawn(make, item).plot.to_dict()
    lines = [t for t in plot["data"] if t["xaxis"] == "x"]
    assert len(lines) == 3 and len(plot["data"]) == 6
    y = unpack(lines[0]["y"])
    assert y.tolist() == [0, 0, 1, 1]
    # Of 12: none reaches up to 24.2 %, all down to 75.8 %.
    assert unpack(lines[0]["error_y"]["array"]) == pytest.approx([0.242, 0.242, 0, 0], abs=1e-3)
    down = unpack(lines[0]["error_y"]["arrayminus"])
    assert down == pytest.approx([0, 0, 0.242, 0.242], abs=1e-3)
    off = unpack(lines[2]["y"])
    assert np.isnan(off[0]) and off[3] == pytest.approx(2 / 12)
    for line in lines:
        assert np.round(unpack(line["x"])).tolist() == [0, 1, 2, 3]
    sick = [t for t in plot["data"] if t["xaxis"] == "x2"]
    assert unpack(sick[0]["y"]).tolist() == [0, 0, 0, 0]
    band = next(s for s in plot["layout"]["shapes"] if s["type"] == "rect")
    assert (band["y0"], band["y1"]) == (item.unpatched.low, item.unpatched.high)


def test_answers_are_shown_escaped_and_the_numbers_are_said(make):
    figure = drawn(make, make.effectiveness(4))
    hover = figure.plot.data[0].hovertext[2]
    assert "layer 2" in hover and "100.0 %" in hover and "of 12" in hover
    assert "&lt;b&gt;answer&lt;/b&gt; 12" in hover and "<b>" not in hover
    assert "undefined" in figure.plot.data[4].hovertext[0]
    assert "100.0 % [75.8, 100.0], n = 12" in figure.caption
    assert "Patching layer 2 with its own values left every answer identical." in figure.caption
    assert "lowest at layer 3 with 16.7 %" in figure.alt


def test_a_failed_identity_and_layers_that_cannot_be_tried_are_said(make):
    item = replace(make.effectiveness(4), self_identical=wilson(11, 12), dtype="bfloat16")
    nothing = make.intervention("off", [None] * 4, 12, site="")
    figure = drawn(make, replace(item, interventions=(nothing,)))
    assert "left only 91.7 %" in figure.caption and "rounding (bfloat16)" in figure.caption
    assert "no layer to try" in figure.alt
    assert FIGURES["effectiveness"](make.empty_records()) == []
