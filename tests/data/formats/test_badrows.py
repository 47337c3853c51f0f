"""Rows that cannot be read: the first one named and the others counted, or left out and counted."""

import json

import pytest
from loratomy.core.errors import DataError
from loratomy.data.formats.badrows import BadRows
from loratomy.data.formats.formats import numbered_data, read_data

GOOD = '{"prompt": "a", "completion": "b"}'
LINES = [
    GOOD,
    '{"prompt": "a", ',
    "[1]",
    '{"prompt": " "}',
    '{"prompt": 3}',
    GOOD,
    '{"prompt": 4}',
    '{"prompt": "x\\ud800"}',
]
RAW = "\n".join(LINES).encode() + b'\n{"prompt": "\xe9"}\n{"prompt": "\0"}\n' + GOOD.encode()


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(RAW)
    return str(path)


def test_the_first_bad_row_is_an_error_that_counts_the_others(source):
    with pytest.raises(DataError) as caught:
        list(read_data(source))
    said = str(caught.value)
    assert said.startswith(f"{source}, line 2: not a JSON object") and "\n" not in said
    assert "; 7 more bad rows (2 x prompt must be a str, 1 x expected a JSON object" in said
    assert "--skip-bad-rows (open, evaluate, data build) leaves such rows out" in said


def test_rows_before_the_first_bad_one_come_first(source):
    assert next(iter(read_data(source))).prompt == "a"


def test_left_out_rows_are_counted_by_kind_and_the_first_ones_kept_in_words(source):
    bad = BadRows()
    assert [item.number for item in numbered_data(source, bad=bad)] == [1, 6, 11]
    assert bad.count() == 8 and len(bad.first) == 5
    assert bad.first[1] == f"{source}, line 3: expected a JSON object, found list"
    assert bad.numbers == {
        "not a JSON object": [2],
        "expected a JSON object": [3],
        "the prompt is empty": [4],
        "prompt must be a str": [5, 7],
        "prompt contains half a character": [8],
        "byte N of the file is not UTF-N": [9],
        "byte N of the file contains a NUL byte": [10],
    }
    assert bad.kinds().startswith("2 x prompt must be a str, 1 x ")


def test_a_file_without_one_good_row_is_an_error_all_the_same(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"prompt": ""}, {"prompt": 1}]))
    with pytest.raises(
        DataError, match=r"none of the 2 rows of .* can be read; .* prompt is empty"
    ):
        list(read_data(str(path), bad=BadRows()))
    assert list(read_data(str(path), bad=BadRows(may_be_all=True))) == []


def test_columns_that_could_both_be_the_answer_are_no_bad_row(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"prompt": "a", "response": "b", "answer": "c"}]))
    with pytest.raises(DataError, match="both response and answer could be the answer"):
        list(read_data(str(path), bad=BadRows()))


def test_bad_rows_of_lists_and_tables_are_left_out_too(tmp_path):
    (tmp_path / "a.json").write_text(f"[{GOOD}, 3, {GOOD}]")
    (tmp_path / "a.csv").write_text("prompt,completion\na,b,c\na,b\n")
    for name, number in (("a.json", 2), ("a.csv", 1)):
        bad = BadRows()
        prompts = {r.prompt for r in read_data(str(tmp_path / name), bad=bad)}
        assert prompts == {"a"}
        assert list(bad.numbers.values()) == [[number]]


def test_a_first_row_of_no_layout_does_not_decide_the_others(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"zz": 1}\n' + GOOD)
    bad = BadRows()
    assert len(list(read_data(str(tmp_path / "a.jsonl"), bad=bad))) == 1
    assert "fit no known format" in bad.first[0]
