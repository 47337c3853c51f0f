"""Numbers in the drawings and tables of `across`."""

from dataclasses import replace

import numpy as np
import pytest
from loratomy.analysis.across.across import across
from loratomy.figures.analysis.across.across import across_figures, across_html

from .... import across_runs as make


@pytest.fixture(scope="module")
def record():
    one = make.everything(8) | {
        "patching": (make.patching_map(8), make.patching_map(8, setting="adapter"))
    }
    two = make.everything(28) | {
        "patching": (make.patching_map(28), make.patching_map(28, setting="adapter"))
    }
    return across([make.source("<b>one</b>", one), make.source("two", two)])


def test_lines_stand_at_the_depth_of_their_layers(record, unpack):
    figures = {f.id: f.plot.to_dict() for f in across_figures(record)}
    lines = [t for t in figures["across-causal"]["data"] if t["mode"] == "lines+markers"]
    assert [line["name"] for line in lines] == [
        "&lt;b&gt;one&lt;/b&gt; (8 layers)",
        "two (28 layers)",
    ]
    assert np.allclose(unpack(lines[0]["x"]), (np.arange(8) + 0.5) / 8)
    # 6 nats of a whole of 10, at the top of the hill
    assert np.allclose(unpack(lines[0]["y"]), 0.6 * make.bump(8, 0.4), atol=1e-6)
    band = next(t for t in figures["across-causal"]["data"] if t.get("fill") == "toself")
    assert np.ptp(unpack(band["y"])[[0, -1]]) == pytest.approx(2 * 0.6 * 0.02, abs=1e-6)


def test_each_run_is_in_the_legend_once_and_no_panel_is_empty(record):
    for figure in across_figures(record)[:-1]:
        body = figure.plot.to_dict()
        shown = [t["legendgroup"] for t in body["data"] if t.get("showlegend")]
        assert sorted(shown) == ["&lt;b&gt;one&lt;/b&gt; (8 layers)", "two (28 layers)"]
        axes = [name for name in body["layout"] if name.startswith("xaxis")]
        assert len({t["xaxis"] for t in body["data"]}) >= len(axes) - 1


def test_marks_carry_their_bands_and_equal_titles_are_told_apart(record, unpack):
    marks = across_figures(record)[-1].plot.to_dict()
    labels = marks["layout"]["yaxis"]["ticktext"]
    assert len(set(labels)) == len(labels)
    assert "patching adapter denoising: resid_pre at the last tokens, rise" in labels
    trace, run = marks["data"][0], record.runs[0]
    found = [p.landmark for p in run.profiles if np.isfinite(p.landmark.depth)]
    assert np.allclose(unpack(trace["x"]), [m.depth for m in found])
    high = [np.nan_to_num(m.high - m.depth) for m in found]
    assert np.allclose(unpack(trace["error_x"]["array"]), high, atol=1e-6)


def test_the_page_says_what_is_not_supported_and_escapes_names(record):
    quiet = replace(record, findings=(), notes=("two lacks <i>x</i>",))
    page = across_html(quiet)
    assert "No agreement and no difference is supported" in page
    assert "&lt;i&gt;x&lt;/i&gt;" in page and "<b>one</b>" not in page.split("<body>")[1]
    effect = next(a for a in record.agreements if a.key == "effect")
    assert f"n&nbsp;=&nbsp;{effect.n}, p&nbsp;=&nbsp;{effect.p:.3f}" in page
