"""The figures of neurons: their numbers are the records', and what is undefined is left out."""

from dataclasses import replace

import numpy as np
import pytest
from loratomy.core.records.neurons import NeuronActivity, NeuronChange
from loratomy.figures import FIGURES

HOSTILE = "<b>x</b>\u202e"


def drawn(records) -> dict:
    return {figure.id: figure for figure in FIGURES["neurons"](records)}


@pytest.fixture(scope="module")
def full(make):
    analyses = (make.neuron_change(6, 8), make.neuron_activity(6))
    return replace(make.empty_records(), analyses=analyses)


def with_change(make, **changes):
    record = replace(make.neuron_change(6, 8), **changes)
    return replace(make.empty_records(), analyses=(record,))


def test_every_neuron_is_counted_once_where_it_lies(full, unpack):
    change = full.first(NeuronChange)
    plot = drawn(full)["neurons-change"].plot.to_dict()
    for trace, first in zip(plot["data"], (0, 2), strict=True):
        z = np.nan_to_num(unpack(trace["z"]))
        assert z.sum() == change.nwc.shape[1]
        # The mean place in the map is the mean logarithm, to within half a cell.
        x, y = unpack(trace["x"]), unpack(trace["y"])
        logs = np.log10(change.nwc)
        assert (z.sum(0) @ x) / z.sum() == pytest.approx(logs[first].mean(), abs=float(x[1] - x[0]))
        assert (z.sum(1) @ y) / z.sum() == pytest.approx(logs[1].mean(), abs=float(y[1] - y[0]))
    figure = drawn(full)["neurons-change"]
    assert "672 neurons" in figure.caption
    assert "0.75 [0.7, 0.8], 0.55 expected from the modules' levels alone" in figure.alt
    assert "58.0 % are common (50.0 % expected" in figure.alt


def test_agreement_shows_what_is_left_step_by_step(full, unpack):
    figure = drawn(full)["neurons-agreement"]
    clean, control = figure.plot.to_dict()["data"][:2]
    assert unpack(clean["x"]).tolist() == pytest.approx([0.75, 0.55, 0.45, 0.35, 0.3])
    assert unpack(control["x"]).tolist() == pytest.approx([0.6, 0.4, 0.3, 0.2])  # one undefined
    assert unpack(clean["error_x"]["array"]).tolist() == pytest.approx([0.05, 0, 0.05, 0.05, 0.05])
    assert "at equal control too 0.3 [0.25, 0.35]" in figure.caption
    lines = drawn(full)["neurons-layers"].plot.to_dict()["data"]
    assert unpack(lines[1]["y"]).tolist() == pytest.approx(0.65 + 0.01 * np.arange(6))


def test_the_way_says_whether_the_rule_was_reached(make, full, unpack):
    figure = drawn(full)["neurons-unlearning"]
    first = figure.plot.to_dict()["data"][0]
    assert unpack(first["y"]).tolist() == pytest.approx(np.linspace(0.3, 9, 10))
    assert "9 steps of at most 50, loss 0.3 to 9, right tokens 90.0 % to 5.0 %" in figure.caption
    assert "right targets 90.0 %" in figure.caption
    change = full.first(NeuronChange)
    stuck = replace(change.unlearnings[1], reached=False)
    records = with_change(make, unlearnings=(change.unlearnings[0], stuck, change.unlearnings[2]))
    assert "at the start) not reached" in drawn(records)["neurons-unlearning"].caption


def test_activity_by_layer_and_its_ratio(full, unpack):
    figure = drawn(full)["neurons-activity"]
    lines = [t for t in figure.plot.to_dict()["data"] if t.get("fill") is None]
    assert unpack(lines[0]["y"]).tolist() == pytest.approx(1.1 * np.arange(1, 7))
    assert unpack(lines[1]["y"]).tolist() == pytest.approx(np.arange(1, 7))
    assert unpack(lines[2]["y"]).tolist() == pytest.approx([1.1] * 6)
    assert "1.1 [0.9, 1.3] times as active as those of the clean adapter" in figure.alt
    assert "0.344 against 0.331" in figure.alt


def test_nothing_to_unlearn_leaves_the_way_and_says_why(make):
    nwc = np.full((3, 672), np.nan)
    records = with_change(make, associations=(), nwc=nwc, undefined="nothing to unlearn")
    figures = drawn(records)
    assert list(figures) == ["neurons-unlearning"]
    assert "nothing to unlearn" in figures["neurons-unlearning"].caption
    assert drawn(make.empty_records()) == {}


def test_text_of_records_stays_text(make, full):
    change, active = full.first(NeuronChange), full.first(NeuronActivity)
    records = replace(
        make.empty_records(),
        analyses=(
            replace(
                change,
                unlearnings=(replace(change.unlearnings[0], name=HOSTILE),),
                associations=(),
            ),
            replace(active, reference=HOSTILE),
        ),
    )
    for figure in drawn(records).values():
        said = str(figure.plot.to_dict()["data"]) + str(figure.plot.to_dict()["layout"])
        assert "<b>" not in said and "\u202e" not in said
