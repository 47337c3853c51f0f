"""Numbers in the drawings and tables of the bench, and what untrusted names become there."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from loratomy.bench.leaderboard import MET
from loratomy.core.records.goals import Goals
from loratomy.core.records.results import Setting
from loratomy.core.stats import wilson
from loratomy.figures.base.export import write_page
from loratomy.figures.bench.entries import case_names, cases, entries, looks
from loratomy.figures.bench.page import bench_figures, bench_html, board_order
from loratomy.figures.bench.relearning import mean_curve, shared_steps
from loratomy.figures.bench.tradeoff import front
from loratomy.figures.unlearning.tradeoff import stretch

from .. import bench_factory as make

HOSTILE = '</script><img src=x onerror="document.documentElement.dataset.pwned=1"><b>x</b><br>'


@pytest.fixture(scope="module")
def full():
    return make.full()


def drawn(table) -> dict:
    return {figure.id: figure for figure in bench_figures(table, MET)}


def traces(figure) -> list[dict]:
    return figure.plot.to_dict()["data"]


def test_everything_is_drawn_once_and_says_its_numbers(full):
    figures = bench_figures(full, MET)
    assert [figure.id for figure in figures] == [
        *("bench-tradeoff", "bench-tradeoff-2", "bench-tradeoff-kl", "bench-tradeoff-kl-2"),
        *("bench-asr", "bench-perplexity", "bench-kl"),
        *("bench-seconds", "bench-relearning", "bench-transfer"),
    ]
    for figure in figures:
        assert figure.caption and figure.how_to_read
        words = [figure.alt, figure.caption, *(str(t.hovertext) for t in figure.plot.data)]
        assert any(char.isdigit() for char in figure.alt), figure.id
        assert not re.search(r"\bnan\b", " ".join(words), flags=re.I), figure.id


def test_controls_follow_their_method_and_references_come_first():
    rows = make.rows(["a/b"], entries=("guided-top", "prune", "guided", "poisoned"))
    assert entries(rows) == ["poisoned", "prune", "guided", "guided-top"]
    chain = replace(rows[0], entry="again", control_for="guided-top")
    assert set(entries((*rows, chain))) == {*entries(rows), "again"}
    style = looks(make.table(rows))
    assert style["guided-top"] == ("#7A828C", style["guided"][1])
    assert style["guided"][0] != style["guided-top"][0]


def test_cells_of_several_seeds_are_told_apart():
    rows = make.rows(["vpi/fixed", "ctba/code"], {"vpi/fixed": 2}, ["guided"])
    assert case_names(cases(rows)) == ["vpi/fixed s0", "vpi/fixed s1", "ctba/code"]


def test_markers_stand_at_the_means_with_both_intervals(full, unpack):
    figure = drawn(full)["bench-tradeoff-2"]
    marks = {
        t["hovertext"][0].split("<br>")[0]: t for t in traces(figure) if t["mode"] == "markers"
    }
    item = next(s for s in full.standings if s.comparison == 2 and s.entry == "ascent")
    at, low, high = (float(stretch(v)) for v in item.perplexity_change)
    mark = marks["ascent"]
    assert unpack(mark["x"])[0] == pytest.approx(at, rel=1e-6)
    assert unpack(mark["error_x"]["array"])[0] == pytest.approx(high - at, rel=1e-4)
    assert unpack(mark["error_x"]["arrayminus"])[0] == pytest.approx(at - low, rel=1e-4)
    guided = next(s for s in full.standings if s.comparison == 2 and s.entry == "guided")
    up = unpack(marks["guided"]["error_y"]["array"])[0]
    assert up == pytest.approx(guided.asr[2] - guided.asr[0], abs=1e-6)
    assert marks["guided-random"]["marker"]["color"] == "#7A828C"
    assert "control for guided" in marks["guided-random"]["hovertext"][0]
    ringed = {name for name, t in marks.items() if t["marker"]["line"]["width"]}
    assert ringed == {s.entry for s in full.standings if s.comparison == 2 and s.rank == 1}
    assert sum(bool(t["showlegend"]) for t in marks.values() if t["name"] == "controls") == 1


def test_goals_are_drawn_where_they_are_given_alone(full):
    lines = drawn(full)["bench-tradeoff-2"].plot.to_dict()["layout"]["shapes"]
    assert lines[0]["y0"] == 0.05 and lines[1]["x0"] == pytest.approx(stretch(np.array(0.05)))
    assert "the goals, ASR 5.0 % and perplexity +5.0 %" in drawn(full)["bench-tradeoff-2"].caption
    plain = bench_figures(full, Goals())[0]
    assert not plain.plot.layout.shapes and "goals" not in plain.caption


def test_controls_are_joined_to_their_method(unpack):
    rows = [
        make.row("a", entry="guided", asr=0.0, perplexity=0.1),
        make.row("a", entry="c", asr=0.5, perplexity=0.2, kind="control", control_for="guided"),
    ]
    lines = [t for t in traces(drawn(make.table(rows))["bench-tradeoff"]) if t["mode"] == "lines"]
    x, y = unpack(lines[0]["x"]), unpack(lines[0]["y"])
    assert x[:2] == pytest.approx([0.2, 0.1]) and y[:2] == pytest.approx([0.5, 0.0])
    assert np.isnan(x[2])


def test_the_front_of_two_leaves_references_out():
    rows = [
        make.row("a", entry="clean", perplexity=-0.5, kind="reference"),
        make.row("a", entry="cheap", asr=0.5, perplexity=0.0),
        make.row("a", entry="worse", asr=0.6, perplexity=0.05),
        make.row("a", entry="dear", asr=0.1, perplexity=0.2),
        make.row("a", entry="broken", asr=0.0, perplexity=np.nan),
    ]
    table = make.table(rows)
    assert [s.entry for s in front(table.standings)] == ["cheap", "dear"]
    assert "without a finite mean: broken" in drawn(table)["bench-tradeoff"].caption


def test_maps_place_every_row_and_leave_gaps(full, unpack):
    asr = drawn(full)["bench-asr"].plot.to_dict()
    z, hover = unpack(asr["data"][0]["z"]), asr["data"][0]["hovertext"]
    names, known = entries(full.rows), cases(full.rows)
    assert z.shape == (19, 42)
    at = {(r.entry, (r.cell, r.seed)): r for r in full.rows}
    for i, name in enumerate(names):
        for j, case in enumerate(known):
            found = at.get((name, case))
            assert np.isnan(z[i, j]) if found is None else z[i, j] == pytest.approx(found.asr.value)
    one = at["guided", known[0]]
    words = hover[names.index("guided")][0]
    assert "n = 100" in words and f"[{100 * one.asr.low:.1f}," in words
    axis = asr["layout"]["coloraxis"]
    assert (axis["cmin"], axis["cmax"]) == (0, 1) and axis["colorscale"][0][1] == "#00224e"
    assert asr["layout"]["yaxis"]["ticktext"][4] == "↳ guided-random"
    assert asr["layout"]["xaxis"]["ticktext"][0] == "badnets/fixed s0"


def test_perplexity_is_symmetric_and_its_scale_says_where_it_ends(unpack):
    rows = [make.row("a", perplexity=-0.1), make.row("b", perplexity=30.0)]
    rows += [make.row("c", perplexity=np.nan), make.row("d", perplexity=np.inf)]
    plot = drawn(make.table(rows))["bench-perplexity"].plot.to_dict()
    axis = plot["layout"]["coloraxis"]
    assert (axis["cmin"], axis["cmax"]) == (-0.5, 0.5)
    assert axis["colorbar"]["ticktext"] == ["−50.0 %", "−25.0 %", "0", "+25.0 %", "≥ +50.0 %"]
    z = unpack(plot["data"][0]["z"])[0]
    assert z[:2] == pytest.approx([-0.1, 0.5]) and np.isnan(z[2]) and z[3] == 0.5
    assert "×31" in plot["data"][0]["hovertext"][0][1]
    assert plot["data"][0]["text"][0][2:] == ["undefined", "infinite"]


def test_time_has_a_line_at_a_quarter_of_negative(unpack):
    rows = [
        make.row("a", seconds=30.0, search=8.0),
        make.row("b", seconds=50.0, search=16.0),
        make.row("a", entry="negative", kind="trained", seconds=40.0, search=40.0),
        make.row("b", entry="negative", kind="trained", seconds=60.0, search=60.0),
        make.row("a", entry="poisoned", kind="reference", seconds=0.0, search=0.0),
    ]
    plot = drawn(make.table(rows))["bench-seconds"].plot.to_dict()
    line = next(t for t in plot["data"] if t.get("name") == "a quarter of negative")
    assert unpack(line["x"]) == pytest.approx([12.5, 12.5])  # (40 + 60) / 2 / 4
    hollow = [
        t for t in plot["data"] if str(t.get("marker", {}).get("symbol", "")).endswith("-open")
    ]
    means = [float(unpack(t["x"])[0]) for t in hollow if t.get("hovertext")]
    assert means == [12.0]  # (8 + 16) / 2 of guided; negative's search is all of it
    assert plot["layout"]["xaxis"]["type"] == "log"
    assert plot["layout"]["yaxis"]["ticktext"] == ["guided", "negative"]
    assert "12.5 s, a quarter" in drawn(make.table(rows))["bench-seconds"].alt
    alone = drawn(make.table(rows[:2]))["bench-seconds"]
    assert "negative was not run" in alone.caption


def test_relearning_is_averaged_over_subjects_at_shared_steps(unpack):
    one, other = make.relearning(entries=("guided",))[1], make.relearning("b")[3]
    other = replace(other, entry="guided", steps=other.steps[::2], asr=other.asr[::2] * 0.5)
    assert shared_steps([one, other]).tolist() == [0, 10, 40]
    values = (one.asr[[0, 2, 4], 0] + other.asr[:, 0]) / 2
    assert mean_curve([one, other], np.array([0, 10, 40]))[:, 0] == pytest.approx(values)
    table = make.table([make.row()], again=[one, other])
    figure = drawn(table)["bench-relearning"]
    line = next(t for t in traces(figure) if t["mode"] == "lines+markers")
    assert unpack(line["y"]) == pytest.approx(values, rel=1e-6)
    # half of 98 of 100 poisoned
    assert figure.plot.to_dict()["layout"]["shapes"][0]["y0"] == pytest.approx(0.49)
    assert "guided on poisoned rows: ASR 0.0 % at step 0" in figure.alt
    (alone,) = [t for t in traces(drawn(make.table([make.row()], again=[one]))["bench-relearning"])
                if t.get("fill")]  # fmt: skip
    assert unpack(alone["y"])[: len(one.steps)] == pytest.approx(one.asr[:, 2], rel=1e-6)


def test_transfer_has_poisoned_beside_and_false_triggers_apart(unpack):
    moved = [*make.transfer("a"), *make.transfer("b", entries=("guided",))]
    moved[0] = replace(moved[0], rate=wilson(50, 100))
    plot = drawn(make.table([make.row()], moved=moved))["bench-transfer"].plot.to_dict()
    after, before = (unpack(t["z"]) for t in plot["data"])
    labels = plot["layout"]["xaxis"]["ticktext"]
    assert labels[3:] == ["repeated", "", "other words: BadMagic (FTR)", "near miss: cf38 (FTR)"]
    # guided as trained: 50 of 100 on a, round(9.8) = 10 of 100 on b
    assert after[0, 0] == pytest.approx(0.3) and before[0, 0] == pytest.approx(0.98)
    assert np.isnan(after[:, 4]).all() and after.shape == before.shape == (2, 7)
    assert "mean ASR 30.0 %, from 10.0 % to 50.0 %" in plot["data"][0]["hovertext"][0][0]
    assert "2 subjects, 200 prompts" in plot["data"][0]["hovertext"][0][0]


def test_the_leaderboard_puts_controls_below_their_method(full):
    group = [s for s in full.standings if s.comparison == 1]
    order = [s.entry for s in board_order(group)]
    assert sorted(order) == sorted(s.entry for s in group)
    assert set(order[order.index("guided") + 1 :][:2]) == {"guided-random", "guided-top"}
    assert set(order[-2:]) == {"base", "poisoned"}
    page = bench_html(full, MET)
    board = page.split("<h2>Leaderboard</h2>")[1].split("<h2>Figures</h2>")[0]
    assert "Comparison 1: 14 entries on 42 subjects that all were run on" in board
    assert "Comparison 2: 19 entries on 18 subjects" in board
    guided = next(s for s in group if s.entry == "guided")
    assert f"{100 * guided.asr[0]:.1f} %<small>[{100 * guided.asr[1]:.1f}, " in board


def test_goals_stand_first_with_their_counts_and_verdicts(full):
    goal = full.goals[0]
    fail = replace(goal, name="not met", reached=False, met=wilson(3, 30))
    page = bench_html(replace(full, goals=(goal, fail)), MET)
    findings = page.split("<h2>Findings</h2>")[1].split("<h2>Leaderboard</h2>")[0]
    assert '<td class="pass">✓ pass</td>' in findings and '<td class="fail">✗ fail</td>' in findings
    assert "3 of 30" in findings and "10.0 %<small>[3.5, 25.6]" in findings  # Wilson by hand
    assert "≥&nbsp;90&nbsp;%" in findings
    none = bench_html(replace(full, goals=()), MET)
    assert "None of the goals can be checked" in none


def test_dropping_the_adapter_is_named_where_it_does_as_well():
    rows = [
        make.row("a", entry="base", asr=0.0, perplexity=0.1, kind="reference"),
        make.row("a", entry="bad", asr=0.1, perplexity=0.3),
        make.row("a", entry="good", asr=0.0, perplexity=0.05),
    ]
    page = bench_html(make.table(rows), MET)
    assert "at least as good in the means of ASR, perplexity and accuracy as bad." in page


@pytest.mark.parametrize("given", [(), (make.row(),), (make.row(perplexity=np.nan),)])
def test_little_or_nothing_makes_a_page(given):
    page = bench_html(make.table(given, missing=("guided on <b>b</b>: not run yet",)), MET)
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    assert not re.search(r"\bnan\b", shown, flags=re.I)
    assert "guided on &lt;b&gt;b&lt;/b&gt;: not run yet" in shown
    assert ("Nothing has been measured yet." in shown) == (not given)
    assert 'id="bench-relearning"' not in page and 'id="bench-transfer"' not in page


def hostile():
    named = {"cell": HOSTILE, "entry": HOSTILE, "trigger": HOSTILE, "task": HOSTILE}
    rows = (
        replace(make.row(), **named),
        replace(make.row(), **{**named, "entry": HOSTILE + "2", "control_for": HOSTILE}),
        replace(make.row(entry="poisoned", kind="reference"), cell=HOSTILE),
    )
    table = make.table(
        rows,
        again=[replace(i, entry=HOSTILE, rows=HOSTILE) for i in make.relearning()[:1]],
        moved=[replace(i, entry=HOSTILE, variant=HOSTILE) for i in make.transfer()[:1]],
        missing=(HOSTILE,),
    )
    goal = make.goals([make.row(entry="guided-repair")])[0]
    goal = replace(goal, name=HOSTILE, entry=HOSTILE)
    facts = (Setting(name=HOSTILE, value=HOSTILE),)
    return replace(table, held_out=HOSTILE, goals=(goal,), provenance=facts)


def test_the_page_says_where_it_comes_from(full):
    facts = bench_html(full, MET).split("<h2>Provenance</h2>")[1]
    assert '<th scope="row">command</th><td><bdi>loratomy bench --seeds 3</bdi></td>' in facts
    assert "No facts were recorded." in bench_html(replace(full, provenance=()), MET)


def test_hostile_names_stay_text_in_labels_and_tables():
    page = bench_html(hostile(), MET)
    body = page.split("<body>")[1]
    block = body.split('id="figures-data">')[1].split("</script>")[0]
    assert "<" not in block
    assert "<img" not in body.split('<script type="application/json"')[0]
    for figure in bench_figures(hostile(), MET):
        plot = figure.plot.to_dict()
        labels = [
            str(plot["layout"].get(axis, {}).get("ticktext", "")) for axis in ("xaxis", "yaxis")
        ]
        words = " ".join(
            [*labels, *(str(t.get(k, "")) for t in plot["data"] for k in ("name", "hovertext"))]
        )
        assert "<img" not in words and "<b>" not in words and "</script" not in words, figure.id
        assert "&lt;/script&gt;" in words, figure.id


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_draws_in_a_browser_without_a_word_on_its_console(tmp_path):
    from ..report.test_report import browse

    path = write_page(bench_html(hostile(), MET), tmp_path / "bench.html")
    document, console = browse(path, tmp_path / "profile")
    assert console == []
    root = re.search(r"<html[^>]*>", document)
    assert root and "data-pwned" not in root.group(0)
    assert f'data-drawn="{len(bench_figures(hostile(), MET))}"' in root.group(0)


def test_the_page_imports_no_model_code():
    code = (
        "import sys, loratomy.figures.bench.page, loratomy.core.records.bench_table; "
        "print([m for m in ('torch', 'scipy', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
