"""Data files as they are found: read in the order of their rows, or refused in one line."""

import io
import json
import os
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import pytest
from loratomy.core.errors import DataError
from loratomy.data.files import jsonlist, texts
from loratomy.data.files.hub import is_hub_id
from loratomy.data.files.readers import records
from loratomy.data.files.utf8 import CheckedText

ROWS = [{"goal": "one", "n": 1.5}, {"goal": 'two, "x"\nü😀', "deep": [{"a": [1, None]}]}]
LIST = json.dumps(ROWS).encode()
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def written(tmp_path, raw: bytes, name: str = "data.json") -> str:
    path = tmp_path / name
    path.write_bytes(raw)
    return str(path)


def values(source: str) -> list[dict]:
    return [record.value for record in records(source)]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data"])
@pytest.mark.parametrize("raw", [LIST, LINES, b"\n  " + LIST, b"\n" + LINES], ids=str)
def test_list_or_lines_is_told_by_the_first_character_not_by_the_name(tmp_path, name, raw):
    assert values(written(tmp_path, raw, name)) == ROWS


@pytest.mark.parametrize("raw", [LIST, LINES, b"goal\none\n"], ids=["list", "lines", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, raw):
    name = "data.csv" if raw.startswith(b"goal") else "data.json"
    plain = values(written(tmp_path, raw, name))
    assert values(written(tmp_path, b"\xef\xbb\xbf" + raw, name)) == plain


def test_records_of_a_list_are_numbered_by_row(tmp_path):
    source = written(tmp_path, LIST)
    found = [(record.number, record.where) for record in records(source)]
    assert found == [(1, f"{source}, row 1"), (2, f"{source}, row 2")]


def test_lines_are_named_by_line_and_counted_by_row(tmp_path):
    source = written(tmp_path, b"{}\n\n \r\n{}\r\n{}")
    found = [(record.number, record.where) for record in records(source)]
    assert found == [(1, f"{source}, line 1"), (2, f"{source}, line 4"), (3, f"{source}, line 5")]


def test_rows_of_a_table_are_named_by_row_and_by_the_line_they_begin_in(tmp_path):
    source = written(tmp_path, b'goal,target\r\n"a\nb","c, ""d"""\r\n\r\ne,\r\n', "data.csv")
    found = [(record.number, record.where, record.value) for record in records(source)]
    assert found == [
        (1, f"{source}, row 1 (line 2)", {"goal": "a\nb", "target": 'c, "d"'}),
        (2, f"{source}, row 2 (line 5)", {"goal": "e", "target": ""}),
    ]


def test_the_unnamed_index_column_of_pandas_is_a_column(tmp_path):
    source = written(tmp_path, b",goal\n0,one\n", "data.csv")
    assert values(source) == [{"": "0", "goal": "one"}]


def test_a_character_cut_by_the_buffer_stays_whole(tmp_path):
    rows = [{"a": "€" * 50_000}, {"a": "x" + "€" * 50_000}, {"a": "xx" + "😀" * 50_000}]
    for text in (json.dumps(rows, ensure_ascii=False), json.dumps(rows)):
        assert values(written(tmp_path, text.encode())) == rows


def test_half_a_character_comes_through_a_list_as_through_lines(tmp_path):
    # yajl, the usual streaming parser, makes "x? y" and another character of these
    text = rb'{"a": "x\ud83d y", "b": "\ud83d\u0041"}'
    want = [{"a": "x\ud83d y", "b": "\ud83dA"}]
    assert values(written(tmp_path, text)) == values(written(tmp_path, b"[" + text + b"]")) == want


DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BAD_FILES = [
    ("a.json", b"", "is empty"),
    ("a.csv", b" \n\n", "is empty"),
    ("a.json", b"\xef\xbb\xbf\n", "is empty"),
    ("a.json", b"[]", "holds no rows"),
    ("a.json", b" [ \n ] ", "holds no rows"),
    ("a.csv", b"goal,target\n", "holds no rows"),
    ("a.json", LIST.decode().encode("utf-16"), "is UTF-16, not UTF-8; save it"),
    ("a.json", LIST.decode().encode("utf-32"), "is UTF-32, not UTF-8; save it"),
    ("a.csv", "goal\nü\n".encode("utf-16"), "is UTF-16, not UTF-8"),
    ("a.json", '{"a": "x"}'.encode("utf-16-le"), "line 1: byte 1 of the file contains a NUL"),
    ("a.json", '{"a": "x"}'.encode("utf-16-be"), "starts with '.x00'"),
    ("a.jsonl", LINES + b'{"a": "x\0"}', r"line 3: byte \d+ of the file contains a NUL byte"),
    ("a.json", b'[{"a": 1},\n{"a": "\0"}]', "line 2: byte 18 of the file contains a NUL byte"),
    ("a.csv", b"a,b\n1,\0\n", "line 2: byte 6 of the file contains a NUL byte"),
    ("a.jsonl", b'{}\n{"a": "\xe9"}', "line 2: byte 10 of the file is not UTF-8; save it"),
    ("a.json", b'[{},\n{"a": "\xe9"}]', "line 2: byte 12 of the file is not UTF-8"),
    ("a.csv", b"a,b\n1,\xe9\n", "line 2: byte 6 of the file is not UTF-8"),
    ("a.json", b'[{"a": "\xe2\x82', "line 1: byte 8 of the file is not UTF-8"),
    ("a.json", b'[{"a": "\xed\xa0\xbd"}]', "line 1: byte 8 of the file is not UTF-8"),
    ("a.json", b"\x1f\x8b\x08", "is packed and broken or cut off"),
    ("a.txt", b"goal,target\na,b\n", r"starts with 'g', .*a table needs the suffix .csv"),
    (
        "a.json",
        b'[{"a": 1}, {"a": 2}, {"a": ',
        r"row 3: broken JSON \(Expecting value, at the end of the file",
    ),
    ("a.json", b'[{"a": 1}, {a: 2}]', r"row 2: broken JSON \(Expecting property .* at 'a: 2}\]'"),
    ("a.json", b'[{"a": 1} {"a": 2}]', "row 2: broken JSON .expected a comma or ], found '{"),
    (
        "a.json",
        b'[{"a": 1}',
        "row 2: broken JSON .expected a comma or ], found the end of the file",
    ),
    ("a.json", b"[", "row 1: expected a JSON object, found the end of the file"),
    ("a.json", b'[{"a": 1},]', "row 2: expected a JSON object, found ']'"),
    ("a.json", b"[,{}]", "row 1: expected a JSON object, found ',{}]'"),
    ("a.json", b'[{"a": 1}] x', "row 2: broken JSON .more text after the list: 'x'"),
    ("a.json", b'[{"a": "\\q"}]', "row 1: broken JSON"),
    ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", "row 1: broken JSON"),
    ("a.json", b'[{"a": 1}, [1], 2]', r"row 2: expected a JSON object, found '\[1\], 2\]'"),
    ("a.json", b'["x"]', "row 1: expected a JSON object, found '\"x\"\\]'"),
    ("a.json", b"[" * 100_000, "row 1: nested too deep"),
    ("a.json", b"[{}, " + DEEP + b"]", "row 2: nested too deep"),
    ("a.jsonl", b"{}\n" + DEEP, "line 2: nested too deep"),
    ("a.jsonl", b"{}\n[1]\n", "line 2: expected a JSON object, found list"),
    ("a.jsonl", b"{}\n{a: 1}\n", "line 2: not a JSON object"),
    ("a.jsonl", b"{}\n{} {}\n", "line 2: not a JSON object"),
    ("a.jsonl", b'{}\n{"a": ' + b"1" * 5000 + b"}", "line 2: not a JSON object"),
    ("a.json", b'{\n  "a": 1,\n}\n', "a.json: broken JSON .expected a key in double quotes"),
    ("a.csv", b",\na,b\n", "has no header: its first line must name the columns"),
    ("a.csv", b"yes,yes\na,b\n", r"has no header: .*\['yes', 'yes'\]"),
    ("a.csv", b"a,b\n1,2\n1,2,3\n", r"row 2 \(line 3\): 3 fields, but the header names 2"),
    ("a.csv", b"a,b\n1\n", r"row 1 \(line 2\): 1 fields, but the header names 2"),
    ("a.csv", b'a,b\n1,"2\n', r"line 2: broken CSV \(unexpected end of data\)"),
    ("a.csv", b'a,b\n1,"2"3\n', "line 2: broken CSV"),
]


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    BAD_FILES,
    ids=[f"{raw[:16]!a} {said[:24]}" for _, raw, said in BAD_FILES],
)
def test_a_file_that_cannot_be_read_to_its_end_says_where_and_why(tmp_path, name, raw, said):
    source = written(tmp_path, raw, name)
    with pytest.raises(DataError, match=said) as caught:
        values(source)
    said_in_full = str(caught.value)
    assert said_in_full.startswith(source) and "\n" not in said_in_full and len(said_in_full) < 500


def at_start(text: str) -> jsonlist.Window:
    window = jsonlist.Window(io.StringIO(text))
    window.next()
    return window


def test_a_list_reads_the_same_however_the_window_falls(tmp_path, monkeypatch):
    text = ' [ {"a": "é\\\\", "b": [1, {"c": -12.5e3}]} ,\n{}, {"a": "\\ud83d\\ude00]}"}\t] \n'
    for size in range(1, 80):
        monkeypatch.setattr(jsonlist, "CHUNK", size)
        assert list(jsonlist.list_objects(at_start(text), "x")) == json.loads(text)


def test_a_row_without_end_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(jsonlist, "CHUNK", 10)
    monkeypatch.setattr(jsonlist, "MAX_ROW", 1000)
    stream = io.StringIO('[{"a": "' + "x" * 100_000)
    with pytest.raises(DataError, match=r"x, row 1: broken JSON \(Unterminated string"):
        list(jsonlist.list_objects(jsonlist.Window(stream), "x"))
    assert stream.tell() < 4000


def test_the_rows_before_a_broken_one_come_first(tmp_path):
    stream = records(written(tmp_path, b'[{"a": 1}, {"a": 2}, {a: 3}]'))
    assert [next(stream).value, next(stream).value] == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match="row 3"):
        next(stream)


def test_a_line_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MAX_ROW", 1000)
    source = written(tmp_path, b'{"a": 1}\n{"a": "' + b"x" * 2000)
    with pytest.raises(DataError, match="line 2: longer than 1000 bytes; JSONL is one obj"):
        values(source)


@pytest.mark.parametrize(
    "source", ["missing.json", "no/such/file.json", "data/missing.jsonl", "", "a\0b", "no such"]
)
def test_a_source_that_is_nowhere_is_no_hub_id(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    said = "is a folder" if source == "" else "no such data file"
    with pytest.raises(DataError, match=said) as caught:
        values(source)
    assert repr(source) in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r"holds no data files .*; give a file"):
        values(str(tmp_path))


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is no regular file; write the data to a file first"):
        values(str(tmp_path / "pipe"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_says_so(tmp_path):
    source = written(tmp_path, LIST)
    os.chmod(source, 0)
    with pytest.raises(DataError, match=r"cannot read the data file .*: Permission denied"):
        values(source)


def test_a_name_too_long_for_a_file_says_so():
    with pytest.raises(DataError, match=r"cannot read the data file .*: File name too long"):
        values("x" * 5000)


def grown(path):
    with path.open("ab") as file:
        file.write(b'{"a": 1}\n')


def rewritten(path):
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    os.utime(path, ns=(1, 1))  # the clock of a file system ticks slower than this test


def replaced(path):
    other, seen = path.with_suffix(".new"), path.stat()
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    os.replace(other, path)


def truncated(path):
    os.truncate(path, path.stat().st_size * 3 // 4)


@pytest.mark.parametrize("change", [grown, rewritten, replaced, truncated, os.remove])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, change):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 50_000)
    stream = records(str(path))
    next(stream)
    change(path)
    with pytest.raises(DataError, match="changed while it was read; read it again"):
        list(stream)


def test_a_file_at_rest_may_be_read_again_and_in_part(tmp_path):
    source = written(tmp_path, LINES)
    next(records(source))
    assert values(source) == values(source) == ROWS


@pytest.mark.parametrize("kind", ["list", "lines", "csv"])
def test_a_long_file_is_never_held(tmp_path, kind):
    path = tmp_path / ("data.csv" if kind == "csv" else "data.json")
    row = {"list": '{"a": %d, "b": "%s"},\n', "lines": '{"a": %d, "b": "%s"}\n', "csv": "%d,%s\n"}
    with path.open("w") as file:
        file.write({"list": "[", "lines": "", "csv": "a,b\n"}[kind])
        for number in range(40_000):
            file.write(row[kind] % (number, "x" * 200))
        file.write("{}]" if kind == "list" else "")
    assert path.stat().st_size > 8_000_000
    tracemalloc.start()
    count = sum(1 for _ in records(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000 + (kind == "list")
    assert peak < 2_000_000


def test_bytes_are_checked_the_same_however_the_buffers_fall():
    text = "a\n€b\n\U0001f600 c".encode()
    for size in range(1, len(text) + 1):
        assert io.BufferedReader(CheckedText(io.BytesIO(text), "x"), size).read() == text
        broken = io.BufferedReader(CheckedText(io.BytesIO(text[:-3] + b"\xff"), "x"), size)
        with pytest.raises(DataError, match="x, line 3: byte 7 of the file is not UTF-8"):
            broken.read()


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        ("tatsu-lab/alpaca", True),
        ("openai/openai_humaneval:test", True),
        ("owner/name/config:train", True),
        ("owner/name/config", False),
        ("data/rows.jsonl", False),
        ("data/rows.json.gz", False),
        ("/data/rows", False),
        ("../rows", False),
        ("alpaca", False),
        ("a b/c", False),
    ],
)
def test_what_reads_like_a_hub_id(source, is_one):
    assert is_hub_id(source) is is_one


@pytest.mark.parametrize("source", ["owner/nothing-here", "owner/nothing-here/config:test"])
def test_a_hub_out_of_reach_says_what_was_tried_and_what_helps(source):
    # in a process of its own: the hub libraries read the variable when they are first imported
    code = (
        "from loratomy.core.errors import DataError\n"
        "from loratomy.data.files.readers import records\n"
        f"try: next(records({source!r}))\n"
        "except DataError as error: print(error)"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_TOKEN": "hf_secret"}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    (said,) = out.stdout.splitlines()
    assert f"no file {source}" in said and "Hugging Face hub" in said
    assert "HF_HOME" in said and "HF_TOKEN" in said and "give a JSON, JSONL or CSV file" in said
    assert "secret" not in out.stdout + out.stderr


def hub_with(monkeypatch, splits: dict | Exception) -> list:
    """A stand-in for the datasets package, and the list of what it is asked for."""
    asked = []

    def load_dataset(name, config, *, streaming):
        asked.append((name, config, streaming))
        if isinstance(splits, Exception):
            raise splits
        return splits

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


@pytest.mark.parametrize(
    ("splits", "source", "where"),
    [
        ({"test": ROWS}, "o/n", "o/n:test, row 2"),
        ({"test": [], "train": ROWS}, "o/n", "o/n:train, row 2"),
        ({"test": ROWS, "train": []}, "o/n:test", "o/n:test, row 2"),
        ({"test": ROWS, "train": []}, "o/n/c:test", "o/n/c:test, row 2"),
    ],
)
def test_a_hub_data_set_is_streamed_from_the_split_that_is_meant(
    monkeypatch, tmp_path, splits, source, where
):
    monkeypatch.chdir(tmp_path)
    asked = hub_with(monkeypatch, splits)
    found = list(records(source))
    assert [record.value for record in found] == ROWS
    assert (found[1].number, found[1].where) == (2, where)
    assert asked == [("o/n", "c" if "/c:" in source else None, True)]


@pytest.mark.parametrize("source", ["o/n", "o/n:dev"])
def test_a_split_that_is_not_there_answers_with_those_that_are(monkeypatch, source):
    hub_with(monkeypatch, {"test": ROWS, "val": ROWS})
    with pytest.raises(DataError, match=r"has the splits \['test', 'val'\]; name one"):
        values(source)


def test_an_empty_hub_data_set_is_refused(monkeypatch):
    hub_with(monkeypatch, {"train": []})
    with pytest.raises(DataError, match="o/n holds no rows"):
        values("o/n")


def test_an_error_of_the_hub_shows_no_secrets_and_one_line(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "own-secret")
    text = "401\nfor https://cdn.hf.co/x?Signature=signed&x=1 with hf_SeCrEt and own-secret"
    hub_with(monkeypatch, ValueError(text))
    with pytest.raises(DataError, match=r"ValueError: 401 for https://cdn.hf.co/x with") as caught:
        values("o/n")
    said = str(caught.value)
    assert "\n" not in said and "own-secret" not in said and "signed" not in said
    assert "SeCrEt" not in said
    assert caught.value.__suppress_context__
