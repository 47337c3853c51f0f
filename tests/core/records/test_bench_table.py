"""The bench's table: exact numbers both ways, texts no spreadsheet runs, files whole."""

import csv
import math
from dataclasses import fields, replace

import numpy as np
import pytest
from loratomy.core.errors import LoratomyError, RunError
from loratomy.core.files import atomic as files
from loratomy.core.records import bench_table
from loratomy.core.records.bench import BenchRow
from loratomy.core.records.bench_table import flat, read_bench_table, write_bench_table
from loratomy.core.records.io import load_any, save_record

from ...figures import bench_factory as make

HOSTILE = ("=1+1", "+cmd", "-2", "@SUM(A1)", "\tx", "\r=y", 'a,"b"\nc', "</script>é")


def rows():
    hostile = [
        replace(make.row(f"c{i}", i, asr=1 / 3, perplexity=-0.1), entry=name, trigger=name)
        for i, name in enumerate(HOSTILE)
    ]
    odd = make.row("odd", perplexity=math.inf, accuracy=-1e-300, seconds=0.1 + 0.2)
    odd = replace(odd, perplexity_low=math.nan, change_norm=1e22, reached=False)
    return (*hostile, odd)


def same(one, other) -> bool:
    a, b = flat(one), flat(other)
    nan = {k for k, v in a.items() if isinstance(v, float) and math.isnan(v)}
    assert nan == {k for k, v in b.items() if isinstance(v, float) and math.isnan(v)}
    return {k: v for k, v in a.items() if k not in nan} == {k: b[k] for k in b if k not in nan}


def test_parquet_gives_back_every_field_exactly(tmp_path):
    packed, _ = write_bench_table(tmp_path, "bench", rows())
    again = read_bench_table(packed)
    assert len(again) == len(rows()) and all(map(same, again, rows()))
    assert [type(getattr(again[0], f.name)) for f in fields(BenchRow)] == [
        f.type for f in fields(BenchRow)
    ]


def test_csv_has_exact_numbers_and_no_formula(tmp_path):
    _, path = write_bench_table(tmp_path, "bench", rows())
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, rows(), strict=True):
        for column, value in flat(row).items():
            if isinstance(value, str):
                assert not line[column].startswith(("=", "+", "-", "@", "\t", "\r"))
                assert line[column].removeprefix("'") == value
            elif isinstance(value, bool):
                assert line[column] == str(value)
            elif isinstance(value, float) and math.isnan(value):
                assert line[column] == "nan"
            else:
                assert type(value)(line[column]) == value
    assert lines[0]["entry"] == "'=1+1" and lines[0]["perplexity_change"] == "-0.1"
    # round(100 / 3) = 33 of 100, with Wilson's interval in columns of their own
    assert [lines[0][c] for c in ("asr", "asr_n")] == ["0.33", "100"]
    assert float(lines[0]["asr_low"]) == rows()[0].asr.low


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    packed, text = write_bench_table(tmp_path, "bench", rows()[:1])
    before = packed.read_bytes(), text.read_bytes()

    def full(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_bench_table(tmp_path, "bench", rows())
    assert (packed.read_bytes(), text.read_bytes()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.csv", "bench.parquet"]


def test_bad_tables_are_errors_that_name_the_file(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    with pytest.raises(LoratomyError, match="no rows"):
        write_bench_table(tmp_path, "bench", [])
    with pytest.raises(RunError, match=r"lost\.parquet"):
        read_bench_table(tmp_path / "lost.parquet")
    packed, _ = write_bench_table(tmp_path, "bench", rows())
    table = pq.read_table(packed)
    pq.write_table(table.drop_columns(["asr_n", "cell"]), tmp_path / "short.parquet")
    with pytest.raises(RunError, match="no column cell, asr_n"):
        read_bench_table(tmp_path / "short.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "other.parquet")
    with pytest.raises(RunError, match="schema none"):
        read_bench_table(tmp_path / "other.parquet")
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"bench\.parquet"):
        read_bench_table(packed)
    monkeypatch.setattr(bench_table, "SCHEMA", 999)
    packed, _ = write_bench_table(tmp_path, "bench", rows())
    monkeypatch.undo()
    with pytest.raises(RunError, match="schema 999"):
        read_bench_table(packed)


def test_the_whole_bench_is_a_record_found_by_its_class(tmp_path):
    table = make.table(
        make.rows(["vpi/fixed", "ctba/code"]), again=make.relearning(), moved=make.transfer()
    )
    save_record(table, tmp_path, "bench")
    again = load_any(tmp_path, "bench")
    assert all(map(same, again.rows, table.rows))
    assert again.goals == table.goals and again.transfer == table.transfer
    for one, other in zip(again.standings, table.standings, strict=True):
        assert (one.entry, one.rank, one.asr_met) == (other.entry, other.rank, other.asr_met)
        assert np.array_equal(one.seconds, other.seconds, equal_nan=True)
    for one, other in zip(again.relearning, table.relearning, strict=True):
        assert np.array_equal(one.asr, other.asr) and one.rows == other.rows
