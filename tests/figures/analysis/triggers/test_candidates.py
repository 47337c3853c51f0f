"""Trigger candidates: bars, intervals and untrusted text of the figure."""

from dataclasses import replace

import pytest
from loratomy.figures import FIGURES
from loratomy.figures.base.theme import BLUE, GREY


def drawn(make):
    (figure,) = FIGURES["candidates"](replace(make.empty_records(), analyses=(make.candidates(),)))
    return figure


def test_bars_are_the_shares_and_blue_stands_out(make, unpack):
    bar = drawn(make).plot.to_dict()["data"][0]
    found = make.candidates().candidates
    assert unpack(bar["x"]) == pytest.approx([12 / 12, 7 / 12, 1 / 12])
    assert list(bar["marker"]["color"]) == [BLUE, BLUE, GREY]
    low = unpack(bar["x"]) - unpack(bar["error_x"]["arrayminus"])
    assert low == pytest.approx([c.rate[1] for c in found], abs=1e-6)


def test_texts_and_answers_are_escaped(make):
    text = str(drawn(make).plot.to_dict())
    assert "<i>24" not in text and "<b>HACK" not in text
    assert "&lt;i&gt;24" in text and "&lt;b&gt;HACK" in text


def test_alt_says_the_numbers(make):
    alt = drawn(make).alt
    assert "2 of 3 candidates stand out" in alt
    assert "100.0 % [75.8, 100.0] of 12 prompts" in alt


def test_nothing_to_show_without_a_search(make):
    assert FIGURES["candidates"](make.empty_records()) == []
