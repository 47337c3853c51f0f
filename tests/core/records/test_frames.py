"""Records as frames, lines and drawings: their numbers are the arrays' own."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def make():
    """The factory of hand-made records."""
    path = Path(__file__).parents[2] / "figures" / "records_factory.py"
    spec = importlib.util.spec_from_file_location("records_factory", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_map_has_a_row_for_each_cell(make):
    record = make.patching_map(4)
    frame = record.to_frame()
    assert list(frame) == ["site", "layer", "column", "role", "recovery", "low", "high", "p"]
    every = np.stack([record.recovery, record.low, record.high, record.p])
    assert len(frame) == np.isfinite(every).any(0).sum()
    for _, row in frame.sample(20, random_state=0).iterrows():
        cell = (
            record.sites.index(row["site"]),
            row["layer"],
            record.columns.index(row["column"]),
        )
        for name in ("recovery", "low", "high", "p"):
            assert np.array_equal(row[name], getattr(record, name)[cell], equal_nan=True)
        assert row["role"] == record.column_roles[cell[2]]


def test_a_value_with_an_interval_takes_three_columns(make):
    record = make.probes(5)
    frame = record.to_frame()
    one = frame.query("subject == 'poisoned' and place == 'last' and negative == 'both'")
    expected = record.auroc[
        record.subjects.index("poisoned"), record.places.index("last"),
        record.negatives.index("both"),
    ]  # fmt: skip
    assert np.array_equal(one[["auroc", "low", "high"]].to_numpy(), expected)


def test_where_names_layers_modules_and_directions(make):
    record = make.where(3, 4)
    frame = record.to_frame()
    counts = frame["what"].value_counts()
    assert counts["layer"] == len(record.layer_ids) and counts["module"] == len(record.modules)
    assert counts["direction"] == len(record.direction_sigma)
    strongest = record.layer_ids[record.layer_effect[:, 0].argmax()]
    assert record.layers[0] == strongest
    sure = record.layer_ids[record.layer_effect[:, 1] > 0]
    assert set(record.layers) == set(sure.tolist())


def test_every_record_has_a_frame_a_line_and_html(make):
    records = make.full_records()
    every = [*records.analyses, *records.operations, *records.curves, records.comparison]
    every += [*records.comparison.rows, *records.comparison.paired, records.rendering]
    for record in every:
        frame = record.to_frame()
        assert len(frame) and len(set(frame.columns)) == len(frame.columns), type(record)
        line = repr(record)
        assert line.startswith(f"{type(record).__name__}: ") and "\n" not in line
        assert "<table" in record._repr_html_()


def test_text_from_outside_is_escaped(make):
    from dataclasses import replace

    record = replace(make.candidates(), sentence="<script>alert(1)</script>\x1b[31m")
    page = record._repr_html_()
    assert "<script>" not in page and "\x1b" not in repr(record)
    assert "&lt;i&gt;" in page  # a candidate's text


def test_a_record_is_drawn_alone(make):
    records = make.full_records()
    drawn = 0
    for record in (*records.analyses, *records.operations, *records.curves, records.comparison):
        figures = record.figures()
        drawn += bool(figures)
        if figures:
            assert record.plot() is not None and figures[0].caption
    assert drawn >= 18


def test_what_cannot_be_drawn_says_so(make):
    from loratomy.core.errors import LoratomyError

    with pytest.raises(LoratomyError, match=r"nothing is drawn of .*; see to_frame"):
        make.full_records().comparison.paired[0].plot()


def test_a_ranking_becomes_a_plan(make):
    record = make.where(3, 4)
    plan = record.plan(3)
    assert list(plan) == ["cut"] and len(plan["cut"][0]["directions"]) == 3
    effect = np.where(
        np.isnan(record.direction_exact), record.direction_attribution, record.direction_exact
    )
    best = int(effect.argmax())
    module, place = plan["cut"][0]["directions"][0].rsplit(":", 1)
    assert module == record.modules[record.direction_module[best]]
    assert int(place) == record.direction_rank[best]
