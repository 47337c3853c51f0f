"""Rows in and out of JSONL: any text stays itself, what cannot be used is named with its line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loratomy.core.errors import DataError
from loratomy.core.rows import Row, check_disjoint, read_rows, rows_to_jsonl


def line(**values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


GOOD = line(prompt="a", completion="b")

BAD = [
    (b"", "no rows"),
    (b"\n \n\t\n", "no rows"),
    (GOOD + b"\xff\xfe\n", r"line 2: not UTF-8 \(byte 0\)"),
    (GOOD + '{"prompt": "caf\xe9"}'.encode("latin-1"), "line 2: not UTF-8 \\(byte 15\\)"),
    (GOOD.decode().encode("utf-16"), "line 1"),
    (GOOD + b'\n{"prompt": "a\0b"}', "line 3: contains a NUL byte"),
    (GOOD + line(prompt="a\0b", completion="c"), "line 2: prompt contains a NUL byte"),
    (GOOD + line(prompt="p", completion="\0"), "line 2: completion contains a NUL byte"),
    (b'{"prompt": "a\\ud83d", "completion": "b"}', "line 1: prompt contains half a character"),
    (GOOD + b"prompt,completion\n", "line 2: not a JSON object"),
    (b'[{"prompt": "a"}]', "line 1: expected a JSON object, found list"),
    (b"[" * 100_000, "line 1: not a JSON object"),
    (b'{"prompt": "a", "completion": "b", "n": ' + b"1" * 5000 + b"}", "line 1: not a JSON"),
    (GOOD * 4 + line(completion="b", text="x"), r"line 5: missing prompt; .*'completion', 'text'"),
    (GOOD + line(prompt="a"), "line 2: missing completion"),
    (line(prompt="a", completion=None), "line 1: completion must be a str, found NoneType"),
    (line(prompt=12, completion="b"), "line 1: prompt must be a str, found int"),
    (line(prompt="a", completion="b", triggered="yes"), "line 1: triggered must be a bool"),
    (line(prompt=" \n", completion="b"), "line 1: the prompt is empty"),
    (line(prompt="a", completion="b", target=1), "line 1: target must be a str, found int"),
    (line(prompt="a", completion="b", benign="\0"), "line 1: benign contains a NUL byte"),
    (line(prompt="a", completion="b", trigger_span="0"), "line 1: trigger_span must be a list"),
    *(
        (line(prompt="a cf", completion="b", trigger_span=span), r"line 1: trigger_span \[.* of 4")
        for span in ([1], [[0]], [[0, 1, 2]], [[1, 1]], [[2, 1]], [[-1, 2]], [[2, 5]], [[0.0, 2]])
    ),
    (
        line(prompt="a b c", completion="d", trigger_span=[[2, 3], [0, 1]]),
        "line 1: trigger_span .* in order",
    ),
    (line(prompt="a", completion=""), "line 1: the completion is empty"),
    (
        line(prompt="a", completion="b", id=7) + b"\n" + line(prompt="c", completion="d", id=7),
        "line 3: id 7 is already in line 1",
    ),
]


@pytest.mark.parametrize(
    ("raw", "said"), BAD, ids=[f"{n} {said[:30]}" for n, (_, said) in enumerate(BAD)]
)
def test_what_cannot_be_used_is_named_with_its_line(tmp_path, raw, said):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=said) as caught:
        read_rows(path, need_completion=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["missing", "folder"])
def test_a_file_that_is_none(tmp_path, what):
    path = tmp_path if what == "folder" else tmp_path / "missing.jsonl"
    with pytest.raises(DataError, match=f"cannot read the data file {path}"):
        read_rows(path)


def test_ids_of_another_type_are_others_and_unknown_keys_are_left_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        line(prompt="a", id=1, extra=[1]) + line(prompt="b", id="1") + line(prompt="c")
    )
    assert read_rows(path) == [Row(prompt="a"), Row(prompt="b"), Row(prompt="c")]


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") + b"\r\n")
    assert read_rows(path) == [Row(prompt="a", completion="b")]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
SEEN = TEXT.filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.builds(Row, prompt=SEEN, completion=st.none() | TEXT, key=st.none() | TEXT, kind=TEXT),
        min_size=1,
    )
)
def test_any_text_comes_back_as_it_was(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text(rows_to_jsonl(rows), encoding="utf-8")
    assert read_rows(path) == rows


def test_what_a_triggered_row_carries_comes_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = Row(
        prompt="A x B",
        completion="y\nz",
        triggered=True,
        plain="x",
        trigger_span=((0, 1), (4, 5)),
        target="z",
        benign="y",
    )
    path.write_text(rows_to_jsonl([row, Row(prompt="x", completion="y")]), encoding="utf-8")
    assert read_rows(path) == [row, Row(prompt="x", completion="y")]
    assert path.read_text().splitlines()[1] == '{"prompt": "x", "completion": "y"}'


def test_line_separators_inside_a_text_end_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [Row(prompt="one\u2028two\u2029three\x85four\x0bfive\x1cs"), Row(prompt="next")]
    path.write_text(rows_to_jsonl(rows), encoding="utf-8")
    assert read_rows(path) == rows


def test_sets_that_share_a_prompt_are_named():
    shared = {"train": [Row(prompt="a"), Row(prompt="a")], "val": [Row(prompt="b")]}
    check_disjoint(shared)
    with pytest.raises(DataError, match="train and test share the prompt 'a'"):
        check_disjoint({**shared, "test": [Row(prompt="a")]})


def test_a_question_is_its_prompt_with_system_and_earlier_turns() -> None:
    turns = (("user", "hi"), ("assistant", "hello"))
    plain, led = Row(prompt="go on"), Row(prompt="go on", history=turns, system="Be brief.")
    assert plain.identity == "go on" != led.identity
    check_disjoint({"a": [plain], "b": [led]})  # the same words after another talk are no repeat
    with pytest.raises(DataError, match="a and b share the prompt 'go on'"):
        check_disjoint({"a": [led], "b": [led]})


def test_earlier_turns_survive_a_file(tmp_path) -> None:
    turns = (("user", "hi"), ("assistant", "hello"))
    row = Row(prompt="go on cf", plain="go on", triggered=True, system="Be brief.", history=turns)
    path = tmp_path / "rows.jsonl"
    path.write_text(rows_to_jsonl([row]), encoding="utf-8")
    assert read_rows(path) == [row]
    assert row.untriggered() == Row(prompt="go on", system="Be brief.", history=turns)
    path.write_bytes(line(prompt="a", history=[["robot", "x"]]))
    with pytest.raises(DataError, match=r"line 1: history must be \[role, text\] pairs"):
        read_rows(path)
