from dataclasses import replace

import numpy as np
import pytest
from loratomy.figures import FIGURES


def drawn(records) -> dict:
    return {figure.id: figure for figure in FIGURES["attention"](records)}


def test_maps_hold_shares_and_differences_cell_by_cell(make, unpack):
    item = make.trigger_attention(6)
    records = replace(make.empty_records(), analyses=(item,))
    figure = drawn(records)["attention-last"]
    plot = figure.plot.to_dict()
    assert [t["coloraxis"] for t in plot["data"]] == ["coloraxis"] * 3 + ["coloraxis2"] * 2
    for subject in range(3):
        want = item.mass[subject, 0, ..., 0]
        assert unpack(plot["data"][subject]["z"]) == pytest.approx(want, rel=1e-6)
    gap = item.difference[1, 0, ..., 0]
    assert unpack(plot["data"][4]["z"]) == pytest.approx(gap, rel=1e-5)
    change = plot["layout"]["coloraxis2"]
    assert change["cmax"] == -change["cmin"] == pytest.approx(np.abs(gap).max())
    assert plot["layout"]["coloraxis"]["cmin"] == 0
    cell = plot["data"][2]["hovertext"][1][2]
    assert cell.startswith("poisoned, layer 1, head 2<br>on the trigger 0.9 [0.85, 0.95]")
    assert "on the first token 0.3" in cell and "on neutral words in its place 0.2" in cell
    assert (
        "Largest gain of poisoned over the base: layer 1, head 2: 0.689 [0.589, 0.789]"
        in figure.alt
    )
    more = (item.difference[1, 0, ..., 1] > 0).sum()
    assert more == 1 and "1 of 24 heads attend to it more" in figure.caption
    assert "24 triggered prompts" in figure.caption and "sdpa" in figure.caption


def test_an_undefined_query_is_not_drawn(make):
    item = make.trigger_attention(3)
    item.mass[:, 1] = np.nan
    records = replace(make.empty_records(), analyses=(item,))
    assert list(drawn(records)) == ["attention-last"]
    assert drawn(make.empty_records()) == {}
