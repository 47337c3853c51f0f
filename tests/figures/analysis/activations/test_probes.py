from dataclasses import replace

import numpy as np
import pytest
from loratomy.figures import FIGURES


def drawn(records) -> dict:
    return {figure.id: figure for figure in FIGURES["probes"](records)}


def test_lines_bands_and_controls_hold_the_records_numbers(make, unpack):
    item = make.probes(6)
    records = replace(make.empty_records(), analyses=(item,))
    figure = drawn(records)["probes-layers"]
    data = figure.plot.to_dict()["data"]
    # Per place: the shuffled area, then band and line of base, clean and poisoned.
    assert len(data) == 3 * (1 + 3 * 2)
    for place in range(3):
        area, *rest = data[7 * place : 7 * place + 7]
        control = item.shuffled[2, place]
        ends = np.concatenate([control[:, 2], control[::-1, 1]])
        assert unpack(area["y"]) == pytest.approx(ends, rel=1e-6)
        for subject in range(3):
            band, line = rest[2 * subject : 2 * subject + 2]
            values = item.auroc[subject, place, 0]
            assert unpack(line["y"]) == pytest.approx(values[:, 0], rel=1e-6)
            ends = np.concatenate([values[:, 2], values[::-1, 1]])
            assert unpack(band["y"]) == pytest.approx(ends, rel=1e-6)
            assert line["name"] == item.subjects[subject]
    assert "against untriggered alone" in data[2]["hovertext"][0]
    assert "untriggered" not in data[16]["hovertext"][0]  # no such negatives at the trigger
    assert "minus base" not in data[2]["hovertext"][0] and "minus base" in data[4]["hovertext"][0]
    mean = item.auroc[2, 0, 0, :, 0].mean()
    assert f"poisoned: mean AUROC over the layers {mean:.3g} at last" in figure.alt
    assert "100 triggered prompts" in figure.caption and "20 permutations" in figure.caption


def test_transfer_sets_this_trigger_beside_the_others(make, unpack):
    item = make.probes(6)
    records = replace(make.empty_records(), analyses=(item,))
    figure = drawn(records)["probes-transfer"]
    lines = [t for t in figure.plot.to_dict()["data"] if t["mode"] == "lines+markers"]
    assert [t["name"] for t in lines[:3]] == ["this trigger", "badnets", "vpi"]
    assert unpack(lines[2]["y"]) == pytest.approx(item.transfer[2, 0, 1, :, 0], rel=1e-6)
    assert unpack(lines[3]["y"]) == pytest.approx(item.auroc[2, 1, 0, :, 0], rel=1e-6)
    assert "Not tried: suffix: shares words with this trigger." in figure.caption


def test_without_other_triggers_there_is_no_transfer(make):
    item = make.probes(4)
    item = replace(item, others=(), transfer=item.transfer[:, :, :0])
    records = replace(make.empty_records(), analyses=(item,))
    assert list(drawn(records)) == ["probes-layers"]
    assert drawn(make.empty_records()) == {}
