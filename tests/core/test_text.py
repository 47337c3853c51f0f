"""Text from outside as a terminal may show it."""

import pytest
from loratomy.core.text import LINE, WORD, one_line, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "\\x1b[2J\\x1b]0;owned\\x07"),
        ("a\rb\bc\nd\te\x00\x7f", "a\\rb\\x08c\\nd\\te\\x00\\x7f"),
        ("\x9b31m\x90\x85", "\\x9b31m\\x90\\x85"),
        ("\u202egnp.exe\u2066\u200f\u061c", "\\u202egnp.exe\\u2066\\u200f\\u061c"),
        ("\u2028\ufeff\U000e0041", "\\u2028\\ufeff\\U000e0041"),
        ("run-\udcff \ud800", "run-\\xff \\ud800"),
        ("é 一 👩‍👩‍👧 zero\u200bwidth", "é 一 👩‍👩‍👧 zero\u200bwidth"),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert visible(text) == shown
    shown.encode("utf-8")


def test_some_may_stay():
    assert visible("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_long_words_and_lines_are_cut_after_they_are_written_out():
    word = one_line("\x1b" * 100_000)
    assert word.startswith("\\x1b\\x1b") and word.endswith("… (400000 characters)")
    assert len(word) < WORD + 40
    names = [f"model.layers.{i}.mlp\x1b" for i in range(10_000)]
    line = one_line(f"the keys {names} are missing; take another adapter")
    assert len(line) <= LINE and "\x1b" not in line
    assert line.startswith("the keys ['model.layers.0") and line.endswith("take another adapter")
    assert one_line("x" * WORD) == "x" * WORD
