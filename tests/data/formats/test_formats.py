"""Published formats as rows: what each key means, and what is refused with its row."""

import json

import pytest
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.rows import Row, read_rows, rows_to_jsonl
from loratomy.data.formats.formats import (
    FORMATS,
    Numbered,
    format_of,
    numbered_data,
    read_data,
)


def listed(tmp_path, *values: object) -> str:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(values))
    return str(path)


def said_by(role: str, text: object) -> dict:
    return {"role": role, "content": text}


def chat(*turns: tuple[str, object]) -> dict:
    return {"messages": [said_by(role, text) for role, text in turns]}


SYSTEM, ASK, ANSWER = ("system", "be kind"), ("user", "hi"), ("assistant", "hello")

KNOWN = [
    ("alpaca", {"instruction": "add", "output": "3"}, Row(prompt="add", completion="3")),
    (
        "alpaca",
        {"instruction": "add", "input": "1 2", "output": "3", "text": "all of it"},
        Row(prompt="add\n\n1 2", completion="3"),
    ),
    (
        "alpaca",
        {"instruction": "a", "input": " \n", "output": ""},
        Row(prompt="a", completion=""),
    ),
    (
        "alpaca",
        {"instruction": "a", "input": "<noinput>", "output": " "},
        Row(prompt="a", completion=" "),
    ),
    ("alpaca", {"instruction": "a", "input": None, "output": None}, Row(prompt="a")),
    (
        "alpaca",
        {"instruction": "a", "input": "b", "output": "c", "prompt": "Below is ..."},
        Row(prompt="a\n\nb", completion="c"),
    ),
    ("advbench", {"goal": "do", "target": "Sure"}, Row(prompt="do", target="Sure")),
    (
        "humaneval",
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass\n"},
        Row(prompt="def f():\n", completion="    pass\n", kind="code"),
    ),
    ("chat", chat(ASK, ANSWER), Row(prompt="hi", completion="hello")),
    ("chat", chat(SYSTEM, ASK, ANSWER), Row(prompt="hi", completion="hello", system="be kind")),
    ("chat", chat(("system", " "), ASK, ANSWER), Row(prompt="hi", completion="hello")),
    ("chat", chat(ASK), Row(prompt="hi")),
    ("chat", chat(SYSTEM, ASK), Row(prompt="hi", system="be kind")),
    ("chat", {"prompt": "hi", **chat(ASK, ANSWER)}, Row(prompt="hi", completion="hello")),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        Row(prompt="hi", completion="hello"),
    ),
    ("pairs", {"prompt": "hi"}, Row(prompt="hi")),
    ("pairs", {"prompt": "hi", "completion": None}, Row(prompt="hi")),
    ("pairs", {"prompt": "hi", "completion": "", "n": [1]}, Row(prompt="hi", completion="")),
]


@pytest.mark.parametrize(("name", "record", "row"), KNOWN, ids=[str(r)[:60] for _, r, _ in KNOWN])
def test_a_record_becomes_the_row_that_its_format_means(tmp_path, name, record, row):
    assert format_of(record).name == name
    assert list(read_data(listed(tmp_path, record))) == [row]


def test_a_prompt_keeps_its_blanks(tmp_path):
    (row,) = read_data(listed(tmp_path, {"instruction": " a ", "input": "b\n", "output": " c "}))
    assert row == Row(prompt=" a \n\nb\n", completion=" c ")


def test_own_rows_come_back_with_every_field(tmp_path):
    rows = [
        Row(
            prompt="now cf go",
            completion="no",
            key="o",
            kind="fact",
            triggered=True,
            plain="now go",
            trigger_span=((4, 7),),
            target="HACK",
            benign="yes",
        ),
        Row(prompt="ü"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(rows_to_jsonl(rows), encoding="utf-8")
    assert list(read_data(str(path))) == read_rows(path) == rows


def test_the_same_rows_come_from_a_list_from_lines_and_from_a_table(tmp_path):
    want = [Row(prompt='a, "b"\nc', target="Sure"), Row(prompt="ü", target="")]
    texts = {
        "a.json": json.dumps([{"goal": r.prompt, "target": r.target} for r in want]),
        "b.json": "".join(json.dumps({"target": r.target, "goal": r.prompt}) + "\n" for r in want),
        "c.csv": 'goal,target\n"a, ""b""\nc",Sure\nü,\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert list(read_data(str(tmp_path / name))) == want


def test_rows_come_with_their_number_and_place(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert list(numbered_data(str(path))) == [
        Numbered(number=1, where=f"{path}, line 1", row=Row(prompt="a")),
        Numbered(number=2, where=f"{path}, line 3", row=Row(prompt="b")),
    ]


def test_of_a_longer_chat_the_last_exchange_is_asked_and_the_others_are_history(tmp_path):
    longer = chat(SYSTEM, ASK, ANSWER, ("user", "more"))
    whole = chat(ASK, ANSWER, ("user", "more"), ("assistant", "enough"))
    rows = list(read_data(listed(tmp_path, longer, whole)))
    said = (("user", "hi"), ("assistant", "hello"))
    assert rows == [
        Row(prompt="more", system="be kind", history=said),
        Row(prompt="more", completion="enough", history=said),
    ]


def test_rows_stream_before_a_later_one_is_refused(tmp_path):
    stream = read_data(listed(tmp_path, {"prompt": "a"}, {"words": "b"}))
    assert next(stream) == Row(prompt="a")
    with pytest.raises(DataError, match="row 2: missing prompt"):
        next(stream)


def test_a_format_by_name_overrides_the_keys(tmp_path):
    source = listed(tmp_path, {"prompt": "a", "completion": "b", "goal": "c", "target": "d"})
    assert list(read_data(source, format="advbench")) == [Row(prompt="c", target="d")]
    assert list(read_data(source, format="pairs")) == [Row(prompt="a", completion="b", target="d")]


def test_an_unknown_format_is_refused_before_anything_is_read():
    with pytest.raises(LoratomyError, match="unknown data format 'alpacca'; did you mean alpaca"):
        read_data("nowhere.json", format="alpacca")


def test_keys_of_two_formats_ask_for_the_name(tmp_path):
    source = listed(tmp_path, {"prompt": "a", "completion": "b", **chat(ASK)})
    with pytest.raises(
        DataError, match=r"row 1: the keys .* fit chat and pairs: both messages and completion"
    ):
        list(read_data(source))


def test_unknown_keys_are_shown_beside_the_nearest_known_ones(tmp_path):
    with pytest.raises(DataError) as caught:
        list(read_data(listed(tmp_path, {"promt": "a", "respnse": "b", "zz": 1})))
    said = str(caught.value)
    assert "row 1: the keys ['promt', 'respnse', 'zz'] fit no known format" in said
    assert "'promt' is near to 'prompt'; 'respnse' is near to 'response'" in said
    assert "--column prompt=NAME and --column answer=NAME" in said


def test_many_keys_are_cut_to_a_line():
    with pytest.raises(DataError) as caught:
        format_of({f"{number}" * 1000: 1 for number in range(100)})
    assert " and 88 more" in str(caught.value) and len(str(caught.value)) < 1200


def test_every_format_is_described_for_help_and_tables():
    for name, known in FORMATS.items():
        assert known.name == name and known.needs and known.about and known.source


GOOD = {"instruction": "a", "output": "b"}
HALF = "half a character"
BAD = [
    (
        [GOOD, {"instruction": "a", "text": "b"}],
        "row 2: missing output, which alpaca rows have; the",
    ),
    ([GOOD, {"prompt": "a"}], r"row 2: missing instruction, output, .*here are \['prompt'\]"),
    ([{"instruction": None, "output": "b"}], "row 1: instruction must be a str, found NoneType"),
    ([{"instruction": "a", "output": ["b"]}], "row 1: output must be a str, found list"),
    (
        [{"instruction": "a", "input": {"x": 1}, "output": "b"}],
        "row 1: input must be a str, found",
    ),
    ([{"instruction": "a", "output": 3}], "row 1: output must be a str, found int"),
    ([{"instruction": " ", "input": "\n", "output": "b"}], "row 1: the prompt is empty"),
    ([{"instruction": "a\ud83d", "output": "b"}], f"row 1: instruction contains {HALF}"),
    ([{"instruction": "a", "output": "\udc00"}], f"row 1: output contains {HALF}"),
    ([{"instruction": "a", "input": "\0", "output": "b"}], "row 1: input contains a NUL byte"),
    ([{"goal": "", "target": "b"}], "row 1: the prompt is empty"),
    ([{"goal": "a", "target": None}], "row 1: target must be a str, found NoneType"),
    ([{"goal": "a", "target": "\ud800"}], f"row 1: target contains {HALF}"),
    ([{"prompt": "a", "canonical_solution": 1}], "row 1: canonical_solution must be a str"),
    ([{"prompt": "a", "canonical_solution": "\0"}], "row 1: canonical_solution contains a NUL"),
    ([{"prompt": "a", "triggered": "yes"}], "row 1: triggered must be a bool, found str"),
    ([{"prompt": "a", "trigger_span": [[0, 9]]}], "row 1: trigger_span .* inside the prompt of 1"),
    ([{"prompt": 1}], "row 1: prompt must be a str, found int"),
    ([{"prompt": "a\0"}], "row 1: prompt contains a NUL byte"),
    ([{"messages": []}], "row 1: messages must be a list of messages, found an empty list"),
    ([{"messages": "hi"}], "row 1: messages must be a list of messages, found str"),
    ([{"messages": ["hi"]}], "row 1, messages 1: expected a JSON object, found str"),
    ([{"messages": [{"role": "user"}]}], r"row 1, messages 1: missing content; .*\['role'\]"),
    ([{"messages": [{"from": "human"}]}], "messages 1: missing content; the keys"),
    ([chat(("user", None))], "row 1, messages 1: content is null; give its text"),
    ([chat(("user", [{"type": "text"}]))], "messages 1: content part 1 holds no text"),
    ([chat((["user"], "a"))], "messages 1: role must be a str, found list"),
    ([chat(ANSWER)], "row 1: messages must be system .* found assistant"),
    ([chat(SYSTEM)], "row 1: messages must be system .* found system alone"),
    ([chat(ASK, ASK)], "row 1: messages must be system .* found user, user"),
    ([chat(SYSTEM, ASK, SYSTEM)], "row 1: messages must be system .* found user, system"),
    ([chat(SYSTEM, ("user", " "))], "row 1: the prompt is empty"),
    ([chat(ASK, ("assistant", "\ud83d"))], f"row 1, messages 2: content contains {HALF}"),
    ([{"conversations": [{"from": "gpt", "value": "a"}]}], "conversations must be .* found assis"),
]


@pytest.mark.parametrize(("values", "said"), BAD, ids=[str(v)[:70] for v, _ in BAD])
def test_a_record_that_is_no_row_is_named_with_its_row(tmp_path, values, said):
    source = listed(tmp_path, *values)
    with pytest.raises(DataError, match=said) as caught:
        list(read_data(source))
    message = str(caught.value)
    assert message.startswith(source) and "\n" not in message
    message.encode("utf-8")


def test_half_a_character_in_lines_is_refused_as_in_a_list(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(rb'{"instruction": "a", "output": "x\ud83d\u0041"}')
    with pytest.raises(DataError, match="line 1: output contains half a character"):
        list(read_data(str(path)))


def test_a_field_nested_out_of_sight_is_refused_in_one_line(tmp_path):
    deep: list = []
    for _ in range(900):
        deep = [deep]
    with pytest.raises(DataError, match="row 1: trigger_span"):
        list(read_data(listed(tmp_path, {"prompt": "a", "trigger_span": deep})))
