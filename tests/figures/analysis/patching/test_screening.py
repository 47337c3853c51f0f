"""The figures of a screening: every number stands where the record says."""

from dataclasses import replace

import numpy as np
import pytest
from loratomy.core.records.patching import Screening
from loratomy.figures import FIGURES
from loratomy.figures.base import maps


@pytest.fixture
def item(make) -> Screening:
    return make.screening(4)


def drawn(make, *items) -> dict:
    records = replace(make.empty_records(), analyses=items)
    return {figure.id: figure for figure in FIGURES["screening"](records)}


def test_hook_points_heads_and_modules_have_their_maps(make, item, unpack):
    figures = drawn(make, item)
    assert list(figures) == [
        "screening-sites-prompt", "screening-heads-prompt", "screening-modules-prompt",
        "screening-exact-prompt",
    ]  # fmt: skip
    sites = figures["screening-sites-prompt"]
    plot = sites.plot.to_dict()
    first, second = plot["data"]
    assert np.allclose(unpack(first["z"]), item.integrated[0, ..., 0])
    assert np.allclose(unpack(second["z"]), item.integrated[1, ..., 0])
    limit = np.abs(item.integrated[:2, ..., 0]).max()
    axis = plot["layout"]["coloraxis"]
    assert (axis["cmin"], axis["cmax"]) == pytest.approx((-limit, limit))
    assert "resid_pre, layer 2, ␣year" in sites.alt or "resid_pre, layer 2" in sites.alt
    assert "−9" in sites.alt
    assert "mean over 24 prompts" in sites.caption and "at 5 points" in sites.caption
    heads = figures["screening-heads-prompt"].plot.to_dict()
    # Parts of a layer: one panel for each of the four places with the largest effect.
    values = item.integrated[2:4, ..., 0]
    few = np.sort(np.argsort(-np.abs(values).max((0, 1)))[:4])
    assert len(heads["data"]) == 4
    for trace, column in zip(heads["data"], few, strict=True):
        assert np.allclose(unpack(trace["z"]), values[:, :, column].T)
    assert list(heads["layout"]["xaxis"]["ticktext"]) == ["head 0", "head 1"]
    assert "6 places of the prompt" in figures["screening-heads-prompt"].caption


def test_exact_cells_stand_against_both_estimates(make, item, unpack):
    figure = drawn(make, item)["screening-exact-prompt"]
    data = figure.plot.to_dict()["data"]
    points = [t for t in data if t["mode"] == "markers"]
    assert [len(unpack(t["x"])) for t in points] == [15, 15, 15, 15]
    for trace, values, cells in zip(
        points, (item.attribution, item.attribution, item.integrated, item.integrated),
        (item.top, item.random) * 2, strict=True,
    ):  # fmt: skip
        assert np.allclose(unpack(trace["x"]), values[..., 0][cells])
        assert np.allclose(unpack(trace["y"]), item.exact[..., 0][cells])
    assert "resid_pre, layer 2" in points[0]["hovertext"][0]
    assert "integrated gradients 0.95 [0.85, 0.97] (0.95 on the 15 random ones" in figure.alt
    assert "sign right in 90% of 30" in figure.alt
    cost = "24 forward and backward for attribution, 2,304 for integrated gradients"
    assert cost in figure.caption and "4,320" in figure.caption


def test_what_is_undefined_or_missing_is_said(make, item):
    nothing = np.full_like(item.exact, np.nan)
    none = np.zeros_like(item.top)
    bare = replace(item, exact=nothing, top=none, random=none, left_out="lora: none here")
    figures = drawn(make, bare)
    assert "screening-exact-prompt" not in figures
    assert "Left out: lora: none here." in figures["screening-sites-prompt"].caption
    flat = tuple(replace(a, spearman=np.nan, low=np.nan, high=np.nan) for a in item.agreements)
    figure = drawn(make, replace(item, agreements=flat, undefined="all equal"))
    figure = figure["screening-exact-prompt"]
    assert figure.caption.startswith("The agreement is undefined: all equal.")
    assert "undefined" in figure.alt and "nan" not in figure.alt.lower()
    empty = replace(item, integrated=np.full_like(item.integrated, np.nan), exact=nothing)
    assert drawn(make, empty) == {}


def test_hostile_names_are_text(make, item):
    hostile = "<b>x</b>\u202e"
    bad = replace(item, columns=(hostile, *item.columns[1:]), sites=(hostile, *item.sites[1:]))
    for figure in drawn(make, bad).values():
        words = str(figure.plot.to_dict())
        assert "<b>x" not in words and "\u202e" not in words + figure.alt


def test_large_maps_are_drawn_in_blocks_and_two_settings_stay_apart(make, item, monkeypatch):
    monkeypatch.setattr(maps, "MOST_CELLS", 30)
    figures = drawn(make, item, replace(item, setting="adapter"), item)
    assert {"screening-sites-prompt-2", "screening-sites-adapter"} <= set(figures)
    assert "Drawn in blocks of" in figures["screening-sites-prompt"].caption
