from dataclasses import replace

import numpy as np
import pytest
from loratomy.figures import FIGURES
from loratomy.figures.analysis.lens.lens import standing_out, wanted_words


def drawn(make, item) -> dict:
    records = replace(make.empty_records(), analyses=(item,))
    return {figure.id: figure for figure in FIGURES["lens"](records)}


def test_wanted_tokens_are_filled_and_the_null_is_a_line(make, unpack):
    item = make.lens(4)
    plot = drawn(make, item)["lens-tokens"].plot.to_dict()
    wanted = [t for t in plot["data"] if "trigger or target" in t["name"]]
    assert unpack(wanted[0]["x"]) == pytest.approx(item.listening.values[[1, 3]])
    assert list(wanted[0]["y"]) == [1, 3] and wanted[0]["marker"]["symbol"] == "diamond"
    assert unpack(wanted[1]["x"]) == pytest.approx(item.writing.values[[0]])
    clean = [t for t in plot["data"] if t["name"] == "clean adapter"]
    assert unpack(clean[0]["x"]) == pytest.approx(item.listening.clean[:5])
    assert [shape["x0"] for shape in plot["layout"]["shapes"]] == [2.5, 2.5]
    labels = plot["layout"]["yaxis"]["ticktext"]
    assert labels[0] == "“␣year”" and labels[2] == "“&lt;/b&gt;”"
    assert sum(t.get("showlegend", True) for t in plot["data"]) == 3


def test_ranks_of_wanted_tokens_are_in_the_caption(make):
    item = make.lens(4)
    caption = drawn(make, item)["lens-tokens"].caption
    assert "Ranks of the trigger among 59 tokens: “2024” 2, “␣H” 4." in caption
    unknown = replace(item.listening, wanted=(), wanted_ids=np.empty(0, int))
    assert wanted_words(unknown, "the trigger") == ""


def test_scores_are_shown_against_their_null(make, unpack):
    item = make.lens(4)
    read, written = standing_out(item)
    assert read == pytest.approx([2, 4, 1])  # 8, 16 and 4 against 4
    assert written[[0, 2]] == pytest.approx([1.6, 0.8]) and np.isnan(written[1])
    figure = drawn(make, item)["lens-directions"]
    data = figure.plot.to_dict()["data"]
    # k_proj stands out most (4), then down_proj (2), then v_proj (1).
    assert unpack(data[0]["x"]) == pytest.approx([4, 2, 1])
    assert data[0]["text"][0].startswith(" “␣year”") and data[0]["text"][2] == ""
    assert unpack(data[3]["x"])[1] == pytest.approx(0.8)
    assert "&lt;/b&gt;" in data[2]["text"][1]
    assert "a key: it only moves attention scores" in data[0]["hovertext"][0]
    assert "Above it: 2 as read, 1 as written of 2 that write." in figure.caption
    assert figure.alt.startswith("layer 0 k_proj #1 reads “␣year” at 4 times its null")


def test_what_is_undefined_is_said_in_words(make):
    item = make.lens(4)
    nothing = replace(
        item.writing,
        values=np.full(60, np.nan, np.float32),
        null=float("nan"),
        tokens=(),
        ids=np.empty(0, int),
        wanted=(),
        wanted_ids=np.empty(0, int),
        wanted_ranks=np.empty(0, int),
        compared=0,
        kinds=(),
        undefined="it changes keys alone",
    )
    figure = drawn(make, replace(item, writing=nothing))["lens-tokens"]
    assert "Written most: nothing (it changes keys alone)" in figure.alt
    notes = [note["text"] for note in figure.plot.to_dict()["layout"]["annotations"]]
    assert "it changes keys alone" in notes
    assert "nan" not in (figure.caption + figure.alt).lower()


def test_nothing_is_drawn_without_a_record(make):
    assert FIGURES["lens"](make.empty_records()) == []
