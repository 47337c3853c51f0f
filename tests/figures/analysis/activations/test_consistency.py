from dataclasses import replace

import numpy as np
import pytest
from loratomy.figures import FIGURES


def drawn(records) -> dict:
    return {figure.id: figure for figure in FIGURES["consistency"](records)}


def test_values_and_differences_are_the_records(make, unpack):
    item = make.consistency(6)
    records = replace(make.empty_records(), analyses=(item,))
    figures = drawn(records)
    data = figures["consistency-values"].plot.to_dict()["data"]
    lines = [t for t in data if t["mode"] == "lines+markers"]
    for subject in range(3):
        for condition in range(3):
            line = lines[3 * subject + condition]
            assert line["name"] == item.conditions[condition]
            want = item.value[subject, condition, :, 0]
            assert unpack(line["y"]) == pytest.approx(want, rel=1e-6)
    data = figures["consistency-differences"].plot.to_dict()["data"]
    lines = [t for t in data if t["mode"] == "lines+markers"]
    assert unpack(lines[2]["y"]) == pytest.approx(item.difference[2, 0, :, 0], rel=1e-5)
    assert unpack(lines[3]["y"]) == pytest.approx(item.difference[0, 1, :, 0], rel=1e-5)
    assert "p 0.25" in lines[0]["hovertext"][0]
    assert "not in CROW's loss" in lines[0]["hovertext"][0]
    assert "not in CROW's loss" not in lines[0]["hovertext"][1]
    assert "counts layers 1 to 4" in figures["consistency-values"].caption
    value = item.loss_difference[2, 0, 0]
    assert f"difference from untriggered {value:.3g}" in figures["consistency-differences"].alt


def test_an_undefined_mean_is_said_and_the_layers_are_still_drawn(make):
    item = make.consistency(4)
    why = "a model of 2 layers has no transition to count"
    blank = np.full_like(item.loss, np.nan)
    item = replace(item, loss=blank, counted=np.zeros(4, bool), undefined=why)
    figures = drawn(replace(make.empty_records(), analyses=(item,)))
    assert f"CROW's mean is undefined: {why}." in figures["consistency-values"].caption
    assert why in figures["consistency-values"].alt
    assert len(figures["consistency-values"].plot.data) == 3 * 3 * 2
    assert drawn(make.empty_records()) == {}
