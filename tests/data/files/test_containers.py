"""Files and folders of rows: the kinds that the hub, pandas and `datasets` write."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from loratomy.core.errors import DataError
from loratomy.data.files.readers import records

ROWS = [{"prompt": "one", "completion": "1"}, {"prompt": "two ü", "completion": None}]
TABLE = pa.Table.from_pylist(ROWS)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def values(source) -> list[dict]:
    return [record.value for record in records(str(source))]


def parquet(path, rows=TABLE):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)
    return path


def stream(path):
    with ipc.new_stream(path, TABLE.schema) as file:
        file.write_table(TABLE)
    return path


def arrow(path):
    feather.write_feather(TABLE, path)
    return path


@pytest.mark.parametrize("write", [parquet, stream, arrow])
def test_columnar_files_are_told_by_their_content(tmp_path, write):
    path = write(tmp_path / "rows.bin")
    assert values(path) == ROWS
    assert [r.where for r in records(str(path))] == [f"{path}, row 1", f"{path}, row 2"]


def test_messages_in_parquet_come_as_lists_of_objects(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hi"}]}]
    assert values(parquet(tmp_path / "a.parquet", pa.Table.from_pylist(rows))) == rows


@pytest.mark.parametrize("write", [parquet, stream, arrow])
def test_a_columnar_file_cut_off_is_one_line(tmp_path, write):
    path = write(tmp_path / "a.bin")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"a\.bin, after row 0: broken .* is it whole\?") as caught:
        values(path)
    assert "\n" not in str(caught.value)


def test_a_text_that_is_not_utf8_is_named_with_its_row(tmp_path):
    raw = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xe9")]
    )
    path = parquet(tmp_path / "a.parquet", pa.table({"prompt": raw}))
    with pytest.raises(DataError, match=r"a\.parquet, row 2: a text that is not UTF-8"):
        values(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files_are_read_as_what_is_in_them(tmp_path, pack):
    (tmp_path / "rows.jsonl.xx").write_bytes(pack(LINES))
    assert values(tmp_path / "rows.jsonl.xx") == ROWS
    (tmp_path / "rows.csv.gz").write_bytes(pack(b"prompt\none\n"))
    assert values(tmp_path / "rows.csv.gz") == [{"prompt": "one"}]
    (tmp_path / "cut.gz").write_bytes(pack(LINES * 99)[:-12])
    with pytest.raises(DataError, match=r"cut\.gz is packed and broken or cut off"):
        values(tmp_path / "cut.gz")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"PK\x03\x04", "a zip archive; unpack it first"),
        (b"\x28\xb5\x2f\xfd", "packed with zstd"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer, not the data"),
        (gzip.compress(gzip.compress(LINES, mtime=0), mtime=0), "packed twice; unpack it once"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, head, said):
    (tmp_path / "a.jsonl").write_bytes(head)
    with pytest.raises(DataError, match=said):
        values(tmp_path / "a.jsonl")


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("key", ["data", "rows", "whatever"])
def test_a_document_with_one_list_of_objects_is_that_list(tmp_path, key, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "2", "tags": ["x"], key: ROWS}, indent=indent))
    assert values(path) == ROWS
    assert next(records(str(path))).where == f"{path}, {key}, row 1"


def test_of_several_lists_the_one_that_is_named_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS[:1]}))
    with pytest.raises(DataError, match=r"2 lists of objects, \['train', 'test'\]; say which"):
        values(path)
    assert values(f"{path}:test") == ROWS[:1]
    with pytest.raises(DataError, match="no list of objects under 'dev'; the keys are"):
        values(f"{path}:dev")


def test_the_answer_of_the_hub_s_viewer_is_read(tmp_path):
    rows = [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(ROWS)]
    (tmp_path / "a.json").write_text(json.dumps({"features": [{"name": "x"}], "rows": rows}))
    assert values(tmp_path / "a.json") == ROWS


def test_objects_over_several_lines_and_objects_of_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert values(path) == ROWS
    path.write_text(json.dumps({"0": ROWS[0], "1": ROWS[1]}))
    with pytest.raises(DataError, match=r"an object under each of the keys .* orient='records'"):
        values(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "prompt;completion\na, b;c\n"),
        ("a.csv", "prompt\tcompletion\na, b\tc\n"),
        ("a.tsv", "prompt\tcompletion\na, b\tc\n"),
        ("a.csv", 'prompt,completion\n"a, b",c\n'),
    ],
)
def test_the_separator_of_a_table_is_told_by_its_first_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert values(tmp_path / name) == [{"prompt": "a, b", "completion": "c"}]


def test_a_field_of_a_table_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\n" + "x" * 200_000 + "\n")
    assert len(values(tmp_path / "a.csv")[0]["prompt"]) == 200_000


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}\n', '[{"a": 1, "a": 2}]', '[{"b": {"a": 1, "a": 2}}]']
)
def test_a_key_that_is_there_twice_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match="the key 'a' is twice in one object"):
        values(tmp_path / "a.json")


def shards(folder):
    for split, rows in (("train", TABLE), ("test", TABLE.slice(0, 1))):
        for number in range(2):
            parquet(folder / f"{split}-{number:05}-of-00002.parquet", rows)


@pytest.mark.parametrize("inside", ["", "data"])
def test_a_folder_of_shards_is_its_training_split(tmp_path, inside):
    shards(tmp_path / inside)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert values(tmp_path) == ROWS * 2
    assert [r.number for r in records(str(tmp_path))] == [1, 2, 3, 4]
    assert values(f"{tmp_path}:test") == ROWS[:1] * 2
    with pytest.raises(
        DataError, match="holds no 'dev' but 'test', 'train'; name one with a colon"
    ):
        values(f"{tmp_path}:dev")


def test_a_missing_shard_is_named(tmp_path):
    shards(tmp_path)
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks the shards \[0\] of the 2"):
        values(tmp_path)


def test_a_data_set_in_the_hub_s_cache_is_its_snapshot(tmp_path):
    cached = tmp_path / "datasets--o--n"
    (cached / "blobs").mkdir(parents=True)
    blob = parquet(cached / "blobs" / "abc")
    (cached / "snapshots" / "rev" / "data").mkdir(parents=True)
    (cached / "snapshots" / "rev" / "data" / "train-00000-of-00001.parquet").symlink_to(blob)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("rev")
    assert values(cached) == values(cached / "snapshots" / "rev") == ROWS


def test_what_datasets_saves_to_disk_is_read(tmp_path):
    import datasets

    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(tmp_path / "two")
    assert values(tmp_path / "one") == values(tmp_path / "two") == ROWS
    assert values(f"{tmp_path}/two:test") == ROWS[:1]
