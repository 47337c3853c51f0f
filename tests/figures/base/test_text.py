import html
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loratomy.core.records.results import Rate
from loratomy.figures.base.text import change, number, percent, rate, token, visible
from loratomy.figures.base.theme import text


def test_what_cannot_be_seen_is_shown():
    assert visible("a\u202eb\u200bc") == "a⟨U+202E⟩b⟨U+200B⟩c"
    assert visible("a\nb\tc\x00") == "a↵b⇥c␀"
    assert visible("a\nb", newlines=True) == "a\nb"
    assert visible("\ud800") == "⟨U+D800⟩"


def test_shortening_keeps_the_limit_and_says_so():
    assert visible("abcdef", limit=4) == "abc…"
    assert visible("abcd", limit=4) == "abcd"


def test_token_shows_the_spaces_at_its_ends():
    assert token(" cf37") == "␣cf37"
    assert token("  ") == "␣␣"


def test_labels_are_escaped_never_stripped():
    assert text("<b>x</b> & <br>") == "&lt;b&gt;x&lt;/b&gt; &amp; &lt;br&gt;"
    assert text("שלום") == "\u2068שלום\u2069"


@given(st.text(max_size=60))
def test_no_label_holds_markup_and_short_ones_lose_nothing(raw: str):
    label = text(raw, limit=10_000)
    assert "<" not in label and ">" not in label
    back = html.unescape(label).strip("\u2068\u2069")
    for char in raw:
        assert char in back or char in " \n\t\r" or f"{ord(char):04X}" in back or ord(char) < 0x20


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "undefined"),
        (math.inf, "infinite"),
        (0.12345, "0.123"),
        (-2.0, "−2"),
        (4e7, "4×10⁷"),
        (2e-7, "2×10⁻⁷"),
    ],
)
def test_numbers(value: float, words: str):
    assert number(value) == words


def test_rates_carry_interval_and_count():
    assert rate(Rate(value=0.97, low=0.915, high=0.99, n=100)) == "97.0 % [91.5, 99.0], n = 100"
    assert percent(math.nan) == "undefined"


def test_changes():
    assert change(0.05) == "+5.0 %"
    assert change(-0.012) == "−1.2 %"
    assert change(11.0) == "×12"
    assert change(math.nan) == "undefined"
