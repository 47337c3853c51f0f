from dataclasses import replace

import numpy as np
import pytest
from loratomy.figures import FIGURES
from loratomy.figures.analysis.lens.logit_lens import decided_words


def drawn(make, item) -> dict:
    records = replace(make.empty_records(), analyses=(item,))
    return {figure.id: figure for figure in FIGURES["logit_lens"](records)}


def test_lines_carry_the_deciding_place_with_its_band(make, unpack):
    item = make.logit_lens(5)
    plot = drawn(make, item)["logit-lens-lines"].plot.to_dict()
    band, line = plot["data"][2:4]
    assert line["name"] == "poisoned"
    assert unpack(line["y"]) == pytest.approx(item.decided_log_prob[1, :, 0], rel=1e-6)
    assert unpack(band["y"])[:5] == pytest.approx(item.decided_log_prob[1, :, 2], rel=1e-6)
    assert unpack(band["y"])[5:] == pytest.approx(item.decided_log_prob[1, ::-1, 1], rel=1e-6)


def test_the_deciding_layer_is_counted_over_prompts(make):
    item = make.logit_lens(5, prompts=4)
    base, poisoned = decided_words(item)
    assert base == "base: the target's first token wins on 0 of 4 prompts."
    assert poisoned == (
        "poisoned: the target's first token wins on 4 of 4 prompts, for good after layer 3.5 "
        "(median, 3 to 4)."
    )
    assert poisoned in drawn(make, item)["logit-lens-lines"].caption


def test_maps_share_one_scale_and_say_rank_and_likeliest_token(make, unpack):
    item = make.logit_lens(5)
    item = replace(item, top=(item.top[0], (("<b>H",) * 10,) * 5))
    figure = drawn(make, item)["logit-lens-maps"]
    plot = figure.plot.to_dict()
    assert [note["text"] for note in plot["layout"]["annotations"]] == ["base", "poisoned"]
    assert unpack(plot["data"][1]["z"]) == pytest.approx(item.mean[1, :, :, 0], abs=1e-5)
    axis = plot["layout"]["coloraxis"]
    assert axis["cmax"] == 0 and axis["cmin"] == pytest.approx(item.mean[..., 0].min())
    cell = plot["data"][1]["hovertext"][4][8]
    assert "median rank 1" in cell and "&lt;b&gt;H on 22 of 24 prompts" in cell
    assert plot["layout"]["xaxis"]["ticktext"][1] == "<b>␣current · trigger</b>"


def test_places_that_no_prompt_has_are_words_not_nan(make):
    item = make.logit_lens(3)
    item.mean[0, :, 2] = np.nan
    item.rank[0, :, 2] = np.nan
    figure = drawn(make, item)["logit-lens-maps"]
    words = str([trace.hovertext for trace in figure.plot.data]) + figure.alt
    assert "nan" not in words.lower() and "undefined" in words
    assert FIGURES["logit_lens"](make.empty_records()) == []
