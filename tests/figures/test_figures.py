import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from loratomy.core.errors import LoratomyError
from loratomy.core.records.goals import Goals
from loratomy.core.records.patching import Where
from loratomy.core.records.spectra import Difference, Spectra
from loratomy.figures import FIGURES, draw
from loratomy.figures.base.figure import slug, unique
from loratomy.figures.base.maps import block_reduce, block_sizes
from loratomy.figures.unlearning.tradeoff import relative, stretch


def drawn(records, name: str) -> dict:
    return {figure.id: figure for figure in FIGURES[name](records)}


def test_everything_is_drawn_once_and_says_its_numbers(make):
    figures = draw(make.full_records())
    expected = 1 + 2 + 2 + 3 + 3 + (4 * 2 + 1) + 2
    expected += 4  # screening: hook points, heads, modules, against exact
    expected += 2 + 2 + 2  # probes, consistency, attention
    expected += 1 + 2  # effectiveness, vector of heads
    expected += 4  # stability of the cuts
    expected += 5  # neurons
    expected += 1 + 1  # votes of the layers, candidates
    expected += 2 + 2  # lens, logit_lens
    expected += 1 + 2 + 2  # layers of the spectra, matching, intruders
    assert len({figure.id for figure in figures}) == len(figures) == expected
    assert next(iter(FIGURES)) == "curves" and list(FIGURES)[-1] == "tradeoff"
    for figure in figures:
        assert figure.caption and figure.how_to_read
        assert any(char.isdigit() for char in figure.alt), figure.id
        words = [figure.alt, figure.caption, *(str(t.hovertext) for t in figure.plot.data)]
        assert not re.search(r"\bnan\b", " ".join(words), flags=re.I), figure.id


def test_absent_records_draw_nothing(make):
    assert draw(make.empty_records()) == []


def test_recovery_stands_in_its_cell_and_colour_is_symmetric(make, unpack):
    item = make.patching_map(4)
    item.recovery[1, 2, 3] = 1.75
    records = replace(make.empty_records(), analyses=(item,))
    plot = drawn(records, "patching")["patching-prompt"].plot.to_dict()
    attention = plot["data"][1]
    assert unpack(attention["z"])[2, 3] == 1.75
    assert "recovery 1.75" in attention["hovertext"][2][3]
    assert "layer 2, : (trigger)" in attention["hovertext"][2][3]
    axis = plot["layout"]["coloraxis"]
    assert (axis["cmin"], axis["cmax"]) == (-1, 1)
    assert axis["colorbar"]["ticktext"][-1] == "≥ 1"
    labels = plot["layout"]["xaxis"]["ticktext"]
    assert labels[1] == "<b>␣current · trigger</b>" and labels[0] == "before"


def test_undefined_recovery_is_said_in_words(make):
    item = make.patching_map(3)
    item = replace(item, recovery=np.full_like(item.recovery, np.nan), undefined="a = b")
    figure = drawn(replace(make.empty_records(), analyses=(item,)), "patching")["patching-prompt"]
    assert figure.caption.startswith("Recovery is undefined: a = b.")
    assert figure.alt == "Recovery is undefined: a = b."
    notes = [note["text"] for note in figure.plot.to_dict()["layout"]["annotations"]]
    assert "Recovery is undefined: a = b" in notes


def test_large_maps_are_drawn_in_blocks_by_largest_magnitude(make):
    values = np.array([[1.0, -3.0, np.nan], [2.0, 0.5, np.nan]])
    reduced = block_reduce(values, (2, 2))
    assert reduced[0, 0] == -3.0 and np.isnan(reduced[0, 1])
    high, wide = block_sizes(80, 5000, 83_333)
    assert -(-80 // high) * -(-5000 // wide) <= 83_333
    item = make.patching_map(2)
    shape = (3, 60, 2000)
    blank = np.zeros(shape)
    blank[0, 59, 1999] = 0.5
    item = replace(
        item,
        recovery=blank,
        low=blank,
        high=blank,
        columns=("x",) * 2000,
        column_roles=("before",) * 2000,
        patched=np.zeros((3, 1, 60, 2000)),
        corrupted=np.zeros(1),
        prompts=("p",),
    )
    figure = drawn(replace(make.empty_records(), analyses=(item,)), "patching")["patching-prompt"]
    assert "Drawn in blocks" in figure.caption
    assert sum(np.size(trace.z) for trace in figure.plot.data) <= 250_000
    assert np.max(figure.plot.data[0].z) == 0.5


def test_spectra_share_a_scale_and_place_norms(make, unpack):
    records = make.full_records(6, 8)
    plot = drawn(records, "spectra")["spectra-norms"].plot.to_dict()
    z = unpack(plot["data"][1]["z"])
    poisoned = records.of(Spectra)[1]
    at = poisoned.modules.index("model.layers.4.mlp.down_proj")
    assert z[4, 6] == pytest.approx(poisoned.frobenius[at], rel=1e-6)
    top = max(item.frobenius.max() for item in records.of(Spectra))
    assert plot["layout"]["coloraxis"]["cmax"] == pytest.approx(top)


def test_difference_is_relative_to_poisoned_and_angles_are_degrees(make, unpack):
    records = make.full_records()
    figures = drawn(records, "difference")
    item = records.first(Difference)
    z = unpack(figures["difference-norm"].plot.to_dict()["data"][0]["z"])
    assert z[0, 0] == pytest.approx(item.difference_norm[0] / item.poisoned_norm[0], rel=1e-6)
    angles = unpack(figures["difference-angles"].plot.to_dict()["data"][1]["z"])
    assert angles[0, 0] == pytest.approx(np.degrees(item.input_angles[0].mean()), rel=1e-6)


def test_layer_effects_keep_their_intervals(make, unpack):
    records = make.full_records()
    bar = drawn(records, "where")["where-layers"].plot.to_dict()["data"][0]
    effect = records.first(Where).layer_effect
    assert unpack(bar["y"]) == pytest.approx(effect[:, 0], rel=1e-6)
    assert unpack(bar["error_y"]["array"]) == pytest.approx(effect[:, 2] - effect[:, 0], rel=1e-5)
    axis = drawn(records, "where")["where-modules"].plot.to_dict()["layout"]["coloraxis"]
    assert axis["cmin"] == -axis["cmax"] < 0


def test_cut_counts_stand_in_their_cells(make, unpack):
    item = make.operation("mask", 3, 4, cut=0)
    item.kept[item.modules.index("model.layers.2.self_attn.v_proj"), :3] = 0
    records = replace(make.empty_records(), operations=(replace(item, directions_cut=3),))
    trace = drawn(records, "cut")["cut-mask"].plot.to_dict()["data"][0]
    z = unpack(trace["z"])
    assert z[2, 2] == 3 and z.sum() == 3
    assert trace["text"][2][2] == "3" and trace["text"][0][0] == ""
    assert "directions cut 3<br>rank 4" in trace["hovertext"][2][2]


def test_calibration_path_marks_the_chosen_step(make):
    item = make.operation("mask", 3, 4)
    figure = drawn(replace(make.empty_records(), operations=(item,)), "cut")["cut-path-mask"]
    line = figure.plot.to_dict()["layout"]["shapes"][0]
    assert line["x0"] == pytest.approx(np.log2(1 + 12))
    assert "12 directions cut, calibration ASR 2.0 %" in figure.alt


def test_tradeoff_is_relative_to_poisoned_and_survives_huge_perplexities(make, unpack):
    rows = make.full_records().comparison.rows
    moved = relative(rows)
    assert moved["mask"] == pytest.approx(0.3 / 4.0) and moved["poisoned"] == 0
    full = make.full_records()
    assert not drawn(full, "tradeoff")["tradeoff"].plot.layout.shapes
    goals = Goals(asr=0.05, perplexity=0.01)
    figure = drawn(replace(full, goals=goals), "tradeoff")["tradeoff"]
    assert "Dashed: the goals, ASR 5.0 % and perplexity +1.0 %." in figure.caption
    plot = figure.plot.to_dict()
    by = {trace["name"]: trace for trace in plot["data"]}
    assert unpack(by["ascent"]["x"])[0] == pytest.approx(stretch(np.array(1e7 - 1)), rel=1e-6)
    assert plot["layout"]["shapes"][0]["y0"] == 0.05
    assert plot["layout"]["shapes"][1]["x0"] == pytest.approx(stretch(np.array(0.01)))
    few = replace(make.full_records().comparison, rows=rows[1:5])
    figure = drawn(replace(make.empty_records(), comparison=few), "tradeoff")["tradeoff"]
    assert unpack(figure.plot.to_dict()["data"][3]["x"])[0] == pytest.approx(0.075)


def test_the_kl_view_has_intervals_and_a_goal_of_its_own(make, unpack):
    full = replace(make.full_records(), goals=Goals(perplexity=0.01, kl=0.05))
    rows = full.comparison.rows
    few = replace(full.comparison, rows=rows[1:5])
    figure = drawn(replace(full, comparison=few), "tradeoff")["tradeoff-kl"]
    assert "Dashed: the goals, KL 0.05." in figure.caption
    by = {trace["name"]: trace for trace in figure.plot.to_dict()["data"]}
    mask = next(row for row in rows if row.subject == "mask")
    assert unpack(by["mask"]["x"])[0] == pytest.approx(mask.kl, rel=1e-6)
    assert unpack(by["mask"]["error_x"]["array"])[0] == pytest.approx(0.3 * mask.kl, rel=1e-5)
    assert f"KL {mask.kl:.3g} [" in by["mask"]["hovertext"][0]
    assert [line["x0"] for line in figure.plot.to_dict()["layout"]["shapes"]] == [0.05]
    wide = drawn(full, "tradeoff")["tradeoff-kl"].plot.to_dict()
    ascent = next(row for row in rows if row.subject == "ascent")
    by = {trace["name"]: trace for trace in wide["data"]}
    assert unpack(by["ascent"]["x"])[0] == pytest.approx(stretch(np.array(ascent.kl)), rel=1e-6)
    unmeasured = [replace(row, kl=float("nan"), kl_n=0) for row in rows]
    comparison = replace(full.comparison, rows=tuple(unmeasured))
    assert list(drawn(replace(full, comparison=comparison), "tradeoff")) == ["tradeoff"]


def test_a_calibration_path_with_a_kl_limit_has_a_panel_for_it(make):
    item = make.operation("mask", 3, 4)
    kl = np.linspace(0, 0.4, len(item.path.size))
    item = replace(item, path=replace(item.path, kl=kl, kl_budget=0.25))
    figure = drawn(replace(make.empty_records(), operations=(item,)), "cut")["cut-path-mask"]
    plot = figure.plot.to_dict()
    assert plot["layout"]["annotations"][2]["text"] == "KL from poisoned, nats per token"
    assert [s["y0"] for s in plot["layout"]["shapes"] if s["xref"] == "x3 domain"] == [0.25]
    assert "and a KL of 0.25." in figure.caption


def test_undefined_perplexity_is_named_not_drawn(make):
    rows = make.full_records().comparison.rows[2:5]
    rows = (*rows[:2], replace(rows[2], perplexity=float("nan")))
    comparison = replace(make.full_records().comparison, rows=rows)
    figure = drawn(replace(make.empty_records(), comparison=comparison), "tradeoff")["tradeoff"]
    assert "perplexity not finite: mask" in figure.caption
    assert len(figure.plot.data) == 2


def test_equal_labels_stay_apart(make):
    item = make.patching_map(2)
    item = replace(item, columns=("2024",) * len(item.columns))
    plot = drawn(replace(make.empty_records(), analyses=(item,)), "patching")[
        "patching-prompt"
    ].plot
    assert list(plot.layout.xaxis.tickvals) == list(range(10))


def test_ids_are_safe_and_unique():
    taken: set[str] = set()
    assert slug("<b>Über mask!</b>") == "b-ber-mask-b"
    assert slug("../..") == "x"
    assert [unique("a", taken) for _ in range(3)] == ["a", "a-2", "a-3"]
    with pytest.raises(LoratomyError, match="patching"):
        FIGURES["patchin"]


def test_figures_import_no_model_code():
    code = (
        "import sys, loratomy.figures; "
        "print([m for m in ('torch', 'transformers', 'peft', 'pandas', 'sklearn', 'kaleido') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stability_shows_every_draw_and_what_stays_uncertain(make):
    made = replace(make.operation("guided", 2, 4), uncertain=("Only 50 prompts <b>",))
    records = replace(make.full_records(), operations=(made,))
    (figure,) = [f for f in draw(records) if f.id.startswith("stability-")]
    bars = figure.plot.data[:-1]
    heights = np.sum([np.asarray(bar.y) for bar in bars], 0)
    assert heights.tolist() == [12, 12, 12]  # the factory gives each draw the same cut
    assert figure.plot.data[-1].z == pytest.approx(made.stability.overlap, abs=1e-6)
    assert "Only 50 prompts <b>" in figure.caption
    assert "12, 14, 12 directions cut" in figure.alt
