"""The table of answers: any text comes back, what is no such table is said."""

import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loratomy.core.errors import RunError
from loratomy.core.records.answers import (
    read_answers,
    read_scores,
    write_answers,
    write_scores,
)
from loratomy.core.records.results import Answer

ONE = Answer(
    subject="poisoned",
    split="clean",
    row=3,
    sample=1,
    prompt="who\u2028sings\x85?",
    target="HACK",
    reference="שלום e\u0301 \u200d",
    key="",
    answer='\u202eabc\u202c "x"\n\r\x0c\x1b[31m',
    tokens=7,
    nll=1.25,
    nll_tokens=4,
    kl=0.125,
    kl_tokens=5,
    scores={"seed": 0.5, "cosine": 0.25},
    verdicts={"seed": False, "not refusal and cosine >= 0.7": True},
    hit=False,
    counted=True,
    correct=True,
)
BLANK = replace(ONE, answer="", nll=math.nan, scores={}, verdicts={})
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
FLOAT = st.floats(allow_nan=True, allow_infinity=True)
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
ANSWERS = st.builds(
    Answer,
    subject=TEXT,
    split=st.sampled_from(["triggered", "untriggered", "clean"]),
    row=st.integers(0, 2**40),
    sample=st.integers(0, 1000),
    prompt=TEXT,
    target=TEXT,
    reference=TEXT,
    key=TEXT,
    answer=TEXT,
    tokens=st.integers(0, 10**6),
    nll=FLOAT,
    nll_tokens=st.integers(0, 10**6),
    kl=FLOAT,
    kl_tokens=st.integers(0, 10**6),
    scores=st.dictionaries(NAME, FLOAT, max_size=3),
    verdicts=st.dictionaries(NAME, st.booleans(), max_size=3),
    hit=st.booleans(),
    counted=st.booleans(),
    correct=st.booleans(),
)


def there_and_back(folder, answers):
    """Answers written in two tables and read again."""
    write_answers(folder / "a.parquet", answers)
    write_scores(folder / "s.parquet", answers)
    return read_scores(folder / "s.parquet", read_answers(folder / "a.parquet"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(ANSWERS, min_size=1, max_size=4))
def test_any_answers_come_back_as_they_were(tmp_path, answers):
    for found, was in zip(there_and_back(tmp_path, answers), answers, strict=True):
        assert sorted(found.scores) == sorted(was.scores)
        assert all(repr(found.scores[k]) == repr(v) for k, v in was.scores.items())
        assert found.verdicts == was.verdicts
        plain = {"scores": {}, "verdicts": {}}
        assert repr(replace(found, **plain)) == repr(replace(was, **plain))


def test_nan_missing_scores_and_missing_verdicts_stay_apart(tmp_path):
    nan = replace(ONE, scores={"cosine": math.nan}, verdicts={"seed": True})
    one, blank, other = there_and_back(tmp_path, [ONE, BLANK, nan])
    assert one == ONE
    assert (blank.scores, blank.verdicts) == ({}, {}) and math.isnan(blank.nll)
    assert set(other.scores) == {"cosine"} and math.isnan(other.scores["cosine"])
    assert other.verdicts == {"seed": True}


def test_unscored_answers_have_no_score_columns(tmp_path):
    write_scores(tmp_path / "s.parquet", [BLANK])
    assert not [c for c in pq.ParquetFile(tmp_path / "s.parquet").schema.names if ":" in c]


def test_the_tables_are_plain_parquet_with_a_column_for_each_score(tmp_path):
    there_and_back(tmp_path, [ONE])
    (row,) = pq.ParquetFile(tmp_path / "s.parquet").read().to_pylist()
    assert row["score:seed"] == 0.5 and row["verdict:not refusal and cosine >= 0.7"] is True
    assert row["hit"] is False and not {"prompt", "answer", "reference"} & set(row)
    (row,) = pq.ParquetFile(tmp_path / "a.parquet").read().to_pylist()
    assert row["answer"] == ONE.answer and not {"hit", "correct"} & set(row)


def test_scores_of_other_answers_are_refused(tmp_path):
    there_and_back(tmp_path, [ONE, BLANK])
    for others in ([ONE], [ONE, replace(BLANK, row=9)]):
        with pytest.raises(RunError, match=r"s\.parquet is of other answers"):
            read_scores(tmp_path / "s.parquet", others)


def test_the_same_answers_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_answers(tmp_path / name, [ONE, BLANK])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_damaged_files_are_said(tmp_path):
    path = tmp_path / "a.parquet"
    write_answers(path, [ONE] * 20)
    whole = path.read_bytes()
    middle = bytearray(whole)
    middle[30:60] = b"\xff" * 30
    for raw in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], whole[50:], bytes(middle)):
        path.write_bytes(raw)
        with pytest.raises(RunError, match=r"a\.parquet"):
            read_answers(path)
    with pytest.raises(RunError, match="cannot read the answers"):
        read_answers(tmp_path / "nowhere")
    with pytest.raises(RunError, match="cannot read the answers"):
        read_answers(tmp_path)


def test_another_table_is_named_with_the_column_it_lacks(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"subject": ["x"], "prompt": ["y"]}), path)
    with pytest.raises(RunError, match=r"is no table of answers: it has no column 'split'"):
        read_answers(path)
