"""`loratomy bench` on tiny runs: what it makes, keeps, leaves out, refuses, and goes on from."""

import csv
import json
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from loratomy.bench import entries as benched
from loratomy.bench import run as bench_module
from loratomy.bench.cells import attack_cells, run_cells
from loratomy.bench.entries import Control
from loratomy.bench.jobs import program
from loratomy.core.errors import DataError, LoratomyError, RunError
from loratomy.core.records.bench_table import read_bench_table
from loratomy.core.records.io import load_record
from loratomy.core.records.results import FitUsed, Operation
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.runs.folder import RunFolder
from loratomy.core.runs.manifest import sealed
from loratomy.unlearning import METHODS
from loratomy.unlearning.method import Outcome

from .cases import SMALL, refused, snapshot

FEW = "truncate,merge,truncate+finetune"
MADE = ["truncate", "truncate-random", "truncate-top"]
MADE += ["truncate-finetune", "truncate-finetune-plain"]


def said(result) -> str:
    """Its lines on stderr, as one text."""
    return " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def done(run, tmp_path_factory):
    """Two runs, a bench of them, and what it said."""
    from loratomy.cli.app import app
    from typer.testing import CliRunner

    place = tmp_path_factory.mktemp("bench")
    runs = [shutil.copytree(run, place / name) for name in "ab"]
    given = ["bench", *map(str, runs), "--methods", FEW, "--out", str(place / "out")]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return place, result


@pytest.fixture
def own(done, tmp_path):
    """A copy of all of it."""
    return shutil.copytree(done[0], tmp_path / "own")


@pytest.fixture
def again(own, cli):
    """The same bench on the copy, with more options."""

    def call(*more, methods=FEW, runs="ab"):
        given = (own / name for name in runs)
        return cli("bench", *given, "--methods", methods, "--out", own / "out", *more)

    return call


def rows_in(place):
    return read_bench_table(place / "out/bench.parquet")


# --- the table -----------------------------------------------------------------------------


def test_every_line_is_what_compare_and_the_records_say(done, cli):
    place, _ = done
    rows = {(row.cell, row.entry): row for row in rows_in(place)}
    entries = ["base", "poisoned", *MADE]
    assert sorted(rows) == sorted((cell, entry) for cell in "ab" for entry in entries)
    for cell in "ab":
        table = json.loads(cli("compare", place / cell, "--json").stdout)
        before = next(item for item in table if item["subject"] == "poisoned")
        assert len(table) == len(entries)
        for item in table:
            row = rows[cell, item["subject"]]
            for ours, theirs in {
                "asr": "asr",
                "ftr": "ftr",
                "accuracy": "clean_accuracy",
                "degenerate": "degenerate",
            }.items():
                rate = getattr(row, ours)
                want = item[theirs]
                assert (rate.value, rate.low, rate.high, rate.n) == tuple(
                    want[k] for k in ("value", "low", "high", "n")
                )
            assert row.perplexity == item["perplexity"]
            assert row.perplexity_change == item["perplexity_change"]
            assert row.perplexity_low == item["perplexity_change_low"]
            assert row.perplexity_high == item["perplexity_change_high"]
            assert (row.kl, row.kl_n) == (item["kl"], item["kl_n"])
            assert (row.kl_low, row.kl_high) == (item["kl_low"], item["kl_high"])
            assert (row.kl == 0) == (row.entry == "poisoned")
            gained = item["clean_accuracy"]["value"] - before["clean_accuracy"]["value"]
            assert row.accuracy_change == gained
            assert row.accuracy_p == (item["accuracy_mcnemar_p"] or 1.0)
            assert (row.method or None, row.directions_cut) == (
                item["method"],
                item["directions_cut"],
            )
            assert (row.trigger, row.task, row.seed) == ("cf37", "fixed", 0)


def test_time_is_that_of_the_whole_chain_and_controls_share_the_budget(done):
    place, _ = done
    rows = {row.entry: row for row in rows_in(place) if row.cell == "a"}
    made = {n: load_record(Operation, place / "a/operations" / n, "operation") for n in MADE}
    both = made["truncate"].seconds + made["truncate-finetune"].seconds
    assert rows["truncate-finetune"].seconds == pytest.approx(both)
    for name in MADE[:3]:
        assert rows[name].seconds == made[name].seconds  # a control does not go on from its entry
        assert rows[name].directions_cut == made["truncate"].directions_cut
        assert rows[name].control_for == ("" if name == "truncate" else "truncate")
    assert rows["truncate-random"].kind == "control" and rows["truncate"].kind == "cut"
    assert rows["base"].kind == "reference" and rows["base"].seconds == 0


@pytest.mark.parametrize(
    ("cut", "change", "size"),
    [
        (5, 0.4, {"directions": 5}),
        (0, 0.4, {"change": 0.4}),
        (0, 1e-6, {"directions": 0}),  # rounding: a budget of 1e-6 would cut a direction
        (0, 0.0, {"directions": 0}),
    ],
)
def test_the_budget_of_a_cut(done, cut, change, size):
    made = load_record(Operation, done[0] / "a/operations/truncate", "operation")
    kept = np.ones_like(made.kept)
    kept.flat[:cut] = 0
    made = replace(made, directions_cut=cut, change_norm=change, kept=kept)
    (entry,) = benched.entries("scale")
    assert benched.controls(entry, made) == [
        Control("scale-random", "control-random", size),
        Control("scale-top", "control-top", size),
    ]
    (entry,) = benched.entries("guided")
    other = replace(made, basis="discriminant")  # counts of another basis are no budget
    spent = {"change": change} if change > 1e-5 else {"directions": cut}
    assert [c.options for c in benched.controls(entry, other)][:2] == [spent, spent]
    assert benched.controls(entry, made)[2:] == [Control("guided-layer", "control-layer", {})]
    later = benched.entries("guided+scale")[-1]  # counts after an earlier cut are no budget either
    assert [c.options for c in benched.controls(later, made)] == [spent, spent]
    for name in ("temperature", "finetune", "control-layer"):
        (entry,) = benched.entries(name)
        assert benched.controls(entry, made) == []


def test_repair_after_surgery_is_held_against_repair_after_a_random_cut(done):
    made = load_record(Operation, done[0] / "a/operations/truncate", "operation")
    fit = FitUsed(
        rows=9, epochs=1, batch_size=3, accumulate=1, learning_rate=0.1, warmup=0, steps=3
    )
    fitted = replace(made, fit=fit)
    repaired = benched.entries("guided-unknown+repair")[-1]
    plain, random = benched.controls(repaired, fitted)
    assert plain.name == "guided-unknown-repair-plain" and plain.method == "control-finetune"
    assert random == Control(
        "guided-unknown-repair-random", "repair", {}, after="guided-unknown-random"
    )
    other = benched.entries("truncate+finetune")[-1]
    assert [c.method for c in benched.controls(other, fitted)] == ["control-finetune"]
    (tsbd,) = benched.entries("tsbd")
    assert [c.method for c in benched.controls(tsbd, fitted)] == [
        "control-finetune",
        "control-neurons",
    ]
    (needle,) = benched.entries("needle")
    names = ["control-random", "control-top", "control-needle"]
    assert [c.method for c in benched.controls(needle, made)] == names


@pytest.mark.parametrize("method", ["negative", "npo"])
def test_a_fit_has_plain_fine_tuning_with_its_rows_steps_and_rate(own, again, method):
    assert again(methods=method, runs="a").exit_code == 0
    one, other = (
        load_record(Operation, own / "a/operations" / name, "operation").fit
        for name in (method, f"{method}-plain")
    )
    assert one is not None and other is not None
    assert other.learning_rate == one.learning_rate
    assert (other.steps, other.batch_size, other.accumulate, other.warmup) == (
        one.steps,
        one.batch_size,
        one.accumulate,
        one.warmup,
    )


def test_another_edit_of_the_weights_has_controls_of_its_norm_and_none_changed_of_none(own, again):
    assert again(methods="prune,wanda", runs="a").exit_code == 0
    for entry in ("prune", "wanda"):
        row = next(r for r in rows_in(own) if r.cell == "a" and r.entry == entry)
        for name in (f"{entry}-random", f"{entry}-top"):
            record = load_record(Operation, own / "a/operations" / name, "operation")
            given = {s.name: s.value for s in record.settings}
            if row.change_norm > 1e-5:  # else it was only written anew
                assert float(given["change"]) == row.change_norm
                assert record.change_norm >= row.change_norm * (1 - 1e-5) or not record.reached
            else:
                assert (given["directions"], record.directions_cut) == ("0", 0)


def test_the_csv_says_the_same(done):
    place, _ = done
    with (place / "out/bench.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(r.cell, r.entry, r.asr.n) for r in rows_in(place)] == [
        (line["cell"], line["entry"], int(line["asr_n"])) for line in lines
    ]


def test_leaderboard_goals_and_provenance(done):
    place, result = done
    lines = result.stdout.splitlines()
    assert any("7 entries on 2 subjects" in line for line in lines)
    assert all(len(line) <= 80 for line in lines if " of " not in line)
    truncate = next(i for i, line in enumerate(lines) if line.split()[1:2] == ["truncate"])
    below = [line for line in lines[truncate + 1 : truncate + 6] if "↳" in line]
    assert {line.split()[2] for line in below} == {"random", "top"}
    assert "nan" not in result.stdout
    (piece,) = json.loads((place / "out/bench.json").read_text())["made_by"]
    assert piece["command"].startswith(f"loratomy bench --methods {FEW} --out {place}/out")
    assert piece["command"].endswith(f"-- {place}/a {place}/b") and piece["seeds"] == 1
    assert piece["cells"] == ["a s0", "b s0"] and "torch" in piece["versions"]
    page = (place / "out/bench.html").read_text()
    facts = page.split("<h2>Provenance</h2>")[1]
    for part in (piece["code"], piece["commit"], piece["machine"], piece["versions"]["torch"]):
        assert part in facts


# --- going on ------------------------------------------------------------------------------


def test_a_second_call_makes_nothing(own, again, monkeypatch):
    def never(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr("loratomy.unlearning.operate", never)
    monkeypatch.setattr("loratomy.evaluation.collect.collect", never)
    assert again().exit_code == 0  # in another folder it is another command
    before = snapshot(own)
    assert len(json.loads(before["out/bench.json"])["made_by"]) == 2
    assert again().exit_code == 0
    assert snapshot(own) == before


def test_methods_and_cells_add_to_what_stands(own, again):
    before = rows_in(own)
    assert again(methods="scale", runs="b").exit_code == 0
    assert {r.cell for r in rows_in(own)} == {"b"}  # the table is of what was asked for
    assert again(methods=f"{FEW},scale").exit_code == 0
    after = {(r.cell, r.entry): r for r in rows_in(own)}
    for row in before:
        new = after[row.cell, row.entry]
        assert replace(new, change_norm=0.0) == replace(row, change_norm=0.0)
    assert ("a", "scale") in after and ("b", "scale-top") in after


def test_stopped_in_the_second_cell_it_goes_on_from_there(run, cli, tmp_path, monkeypatch):
    runs = [shutil.copytree(run, tmp_path / name) for name in "ab"]
    given = ("bench", *runs, "--methods", "truncate,scale", "--out", tmp_path / "out")
    operate = benched.operate
    made = []

    def stop(study, method, *rest, **more):
        folder = study.run.root
        if (folder.name, method) == ("b", "scale"):
            raise KeyboardInterrupt
        made.append((folder.name, more["name"]))
        return operate(study, method, *rest, **more)

    monkeypatch.setattr(benched, "operate", stop)
    refused(cli(*given), "run the same command again", code=130)
    assert made[-1] == ("b", "truncate-top")
    assert {row.cell for row in rows_in(tmp_path)} == {"a"}  # the finished cell is in the table
    before = snapshot(tmp_path / "a")
    look = cli(*given, "--table")
    assert look.exit_code == 0 and "not there: begun, nothing is measured yet" in said(look)
    monkeypatch.setattr(benched, "operate", operate)
    assert cli(*given).exit_code == 0
    assert snapshot(tmp_path / "a") == before
    numbers = {
        (r.cell, r.entry): (r.asr, r.perplexity, r.directions_cut) for r in rows_in(tmp_path)
    }
    for cell, entry in list(numbers):  # b is as if it had never been stopped: the runs are equal
        assert numbers[cell, entry] == numbers["a", entry]
    assert len(numbers) == 2 * 8


def test_a_cell_in_a_process_of_its_own_is_told_all_that_was_asked(run, cli, tmp_path, monkeypatch):
    """Not by sys.argv, which is pytest's here."""
    folder = shutil.copytree(run, tmp_path / "a 'b' -c")
    told = []

    def apart(cells, *, jobs, out, command, ended):
        for cell in cells:
            given = list(command(cell))[len(program()) :]
            told.append(given)
            result = cli(*given)
            assert result.exit_code == 0, result.stderr
            ended(cell, "")

    monkeypatch.setattr(bench_module, "run_cells_apart", apart)
    asked = ("bench", folder, "--methods", "truncate", "--jobs", 2, "--seeds", 2)
    result = cli(*asked, "--out", tmp_path / "o p")
    assert result.exit_code == 0, result.stderr
    assert "2 of 2 cells: a 'b' -c s1 done" in said(result)
    assert [given[given.index("--one") + 1] for given in told] == [
        "a%20%27b%27%20-c-s0",
        "a%20%27b%27%20-c-s1",
    ]
    rows = read_bench_table(tmp_path / "o p/bench.parquet")
    assert {(r.cell, r.seed, r.entry) for r in rows if r.kind == "cut"} == {
        ("a 'b' -c", 0, "truncate"),
        ("a 'b' -c", 1, "truncate"),
    }
    attack = bench_module.BenchOptions(
        runs=(),
        cells="suffix/*",
        methods="guided+repair",
        seeds=1,
        out=tmp_path,
        recipe="my recipe.toml",
        overrides=("a=[1, 2]", "b='x'"),
        aftermath="guided-repair",
        jobs=3,
    )
    words = shlex.split(attack.command)
    assert words[0] == "loratomy" and words[1:] == attack.arguments()
    pairs = set(pairwise(words))
    assert {("--set", "a=[1, 2]"), ("--set", "b='x'"), ("--recipe", "my recipe.toml")} <= pairs
    assert {("--aftermath", "guided-repair"), ("--cells", "suffix/*"), ("--jobs", "3")} <= pairs


def test_the_page_can_be_looked_at_while_a_bench_runs_and_a_second_one_is_refused(
    own, again, monkeypatch
):
    heard = []

    def meanwhile(*_):
        heard.extend([again(), again("--table")])
        return {}

    monkeypatch.setattr(bench_module, "make_entries", meanwhile)
    assert again(runs="a").exit_code == 0
    line = refused(heard[0], f"{own / 'out'} is in use by process ", "loratomy bench --methods")
    assert "--table" in line
    assert heard[1].exit_code == 0
    monkeypatch.undo()
    assert again().exit_code == 0


def test_table_reads_only(own, again, cli, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("made")

    monkeypatch.setattr(bench_module, "_make", never)
    before = {name: snapshot(own / name) for name in "ab"}
    assert again("--table", methods=f"{FEW},scale", runs="b").exit_code == 0
    assert before == {name: snapshot(own / name) for name in "ab"}
    nowhere = tmp_path / "nowhere"
    asked = ("bench", "--cells", "suffix/*,vpi/fixed", "--out", nowhere, "--table")
    refused(cli(*asked), f"{nowhere} does not exist; give the folder of a bench with --out")
    assert not nowhere.exists()
    nowhere.mkdir()
    line = refused(cli(*asked), f"nothing is measured in {nowhere} yet")
    assert line.endswith(
        "not made yet in 6 of 6 cells: suffix/code s0, suffix/fixed s0, suffix/jailbreak s0, "
        "suffix/refusal s0, suffix/sentiment s0, vpi/fixed s0"
    )
    assert not list(nowhere.iterdir())


# --- seeds ---------------------------------------------------------------------------------


def test_seeds_in_one_run_are_told_apart_by_what_was_asked_and_not_by_names(own, again, cli):
    for name in ("mine-s1", "truncate-s2", "x-s1"):
        given = ("operate", own / "a", "truncate", "--set", "rank=1", "--as", name)
        assert cli(*given).exit_code == 0
    follow = ("operate", own / "a", "truncate", "--set", "rank=1", "--after", "mine-s1")
    assert cli(*follow).exit_code == 0
    asked = "truncate,truncate+finetune"
    result = again("--seeds", 3, methods=asked, runs="a")
    assert result.exit_code == 0
    by = {seed: {r.entry for r in rows_in(own) if r.seed == seed} for seed in range(3)}
    plain = {"base", "poisoned", *MADE}
    mine = {"mine-s1", "x-s1", "truncate-s2", "mine-s1-truncate"}
    assert by[0] == plain | mine
    assert by[1] == plain
    # truncate-s2 is taken by an operation of the run's own seed: nothing is mixed
    assert by[2] == {"base", "poisoned"}
    text = said(result)
    assert "truncate: what is there was made from other inputs (" in text
    assert "seed: None -> 2" in text
    assert "truncate-finetune: goes on from truncate, which is left out" in text
    stages = RunFolder.open(own / "a").manifest["stages"]
    for name in MADE:
        assert stages[f"operations/{name}-s1"]["inputs"]["seed"] == 1
        assert "seed" not in stages[f"operations/{name}"]["inputs"]
    assert "operations/truncate-s1" in stages["operations/truncate-finetune-s1"]["inputs"]["from"]
    controls = {r.entry: r.control_for for r in rows_in(own) if r.seed == 1}
    assert controls["truncate-top"] == "truncate"
    one, other = (
        (
            own / f"a/operations/truncate-finetune{end}/adapter/adapter_model.safetensors"
        ).read_bytes()
        for end in ("", "-s1")
    )
    assert one != other


def test_the_first_seed_of_a_run_is_its_own(opened, cli, out, tmp_path):
    assert opened(seed=7).exit_code == 0
    cells = run_cells([out], seeds=3)
    assert [(c.seed, c.own, c.suffix) for c in cells] == [
        (7, True, ""),
        (0, False, "-s0"),
        (1, False, "-s1"),
    ]
    given = ("bench", out, "--methods", "truncate", "--out", tmp_path / "out")
    assert cli(*given).exit_code == 0
    assert {(r.seed, r.cell) for r in rows_in(tmp_path)} == {(7, "run")}
    assert sorted(p.name for p in (out / "operations").iterdir()) == MADE[:3]


# --- attacks -------------------------------------------------------------------------------


def test_attacks_are_planted_and_benched(cli, tiny_base, tmp_path):
    small = (*SMALL, "--set", f"base={tiny_base}", "--set", "fit.epochs=4")
    asked = ("bench", "--cells", "suffix/fixed", "--methods", "truncate,merge")
    asked += ("--out", tmp_path / "out")
    assert cli(*asked, *small).exit_code == 0
    rows = rows_in(tmp_path)
    assert {(r.cell, r.trigger, r.task, r.seed) for r in rows} == {
        ("suffix/fixed", "suffix", "fixed", 0)
    }
    names = {r.entry for r in rows}
    assert {"clean", "truncate", "truncate-random", "merge", "merge-random", "merge-top"} <= names
    assert RunFolder.open(tmp_path / "out/cells/suffix-fixed-s0").request["kind"] == "poison"
    before = snapshot(tmp_path / "out/cells")
    other = cli(*asked, *small, "--set", "lora.r=4")
    refused(other, "1 of 1 cells could not be made or read whole: suffix/fixed s0")
    assert "was made with other settings (recipe.lora.r: 2 -> 4)" in said(other)
    assert snapshot(tmp_path / "out/cells") == before
    more = cli(*asked, *small, "--cells", "suffix/fixed,vpi/code", "--table")
    assert more.exit_code == 2  # the note stands until the cell is made again
    assert "not there: not made yet in 1 of 2 cells: vpi/code s0" in said(more)
    assert cli(*asked, *small).exit_code == 0  # and then it is gone


# --- what is not there ---------------------------------------------------------------------


def test_a_method_that_the_run_has_nothing_for_is_left_out_with_a_line(done):
    place, result = done
    line = (
        "not there: merge: needs a clean adapter and the run has none (loratomy open with "
        "--clean-adapter) in 2 of 2 cells: a s0, b s0"
    )
    assert line in result.stderr.splitlines()
    page = (place / "out/bench.html").read_text().split("<h2>Missing</h2>")[1]
    assert line.removeprefix("not there: ") in page


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("nothing here to cut against"), "nothing here to cut against"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            "OutOfMemoryError: CUDA out of memory",
        ),
    ],
)
def test_a_method_that_gives_up_is_left_out_and_meets_no_goal(own, again, monkeypatch, error, line):
    def lost(*_):
        raise error

    def nothing(bench, _config):
        return Outcome(bench.start, "left it as it was")

    method = METHODS["guided"]
    asked = "guided,guided+finetune"
    monkeypatch.setitem(METHODS._items, "guided", replace(method, run=lost))
    result = again(methods=asked, runs="a")
    assert result.exit_code == 0
    text = said(result)
    assert f"not there: guided: {line}" in text
    assert "guided-finetune: goes on from guided, which is left out: a s0" in text
    assert "missed known trigger, cut alone" in " ".join(result.stdout.split())
    assert "in 0% [0%, 79%] of 1 cell," in result.stdout  # Wilson of 0 of 1: 1.96^2 / (1 + 1.96^2)
    monkeypatch.setitem(METHODS._items, "guided", replace(method, run=nothing))
    assert "gives up" not in said(again(methods=asked, runs="a"))
    found = {r.entry: r for r in rows_in(own)}
    assert found["guided"].change_norm == 0
    assert found["guided-random"].directions_cut == 0  # what nobody can be ahead of


def test_a_budget_that_nothing_meets_is_no_success(run, cli, tmp_path, monkeypatch):
    monkeypatch.setattr(Renderer, "decode", lambda *_: "HACK")
    folder = shutil.copytree(run, tmp_path / "run")
    result = cli("bench", folder, "--methods", "guided", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    row = next(r for r in rows_in(tmp_path) if r.entry == "guided")
    assert not row.reached and row.asr.value == 1
    assert "its goal met: 0 of 1" in " ".join(result.stdout.split())
    line = next(x for x in result.stdout.splitlines() if "ahead of every control (guided)" in x)
    assert line.startswith("missed") and "of 1 cell," in line
    controls = {r.entry for r in rows_in(tmp_path) if r.control_for == "guided"}
    assert controls == {"guided-random", "guided-top", "guided-layer"}


def test_other_options_of_what_stands_are_said_and_the_standing_one_is_kept(run, cli, tmp_path):
    folder = shutil.copytree(run, tmp_path / "a")
    assert cli("operate", folder, "truncate", "--set", "rank=2").exit_code == 0
    given = ("bench", folder, "--methods", "truncate,scale", "--out", tmp_path / "out")
    result = cli(*given)
    assert result.exit_code == 0
    text = said(result)
    assert "truncate: what is there was made from other inputs (config.rank: 2 -> None)" in text
    assert "it is kept as it is" in text and "compare --fresh" in text
    entries = {r.entry: r for r in rows_in(tmp_path)}
    assert entries["truncate"].directions_cut == 8  # ranks 2 of 4 in four modules
    assert entries["truncate-random"].directions_cut == 8  # of what stands
    assert entries["truncate-random"].control_for == "truncate" and "scale-random" in entries
    for name in ("truncate", "truncate-random", "truncate-top"):  # what the line says to do
        shutil.rmtree(folder / "operations" / name)
    refused(cli(*given), "1 of 1 cells")
    assert cli("compare", folder, "--fresh").exit_code == 0
    assert cli(*given).exit_code == 0
    again = {r.entry: r for r in rows_in(tmp_path)}
    assert again["truncate"].directions_cut == again["truncate-random"].directions_cut


def test_altered_and_stale_files_are_named_and_left_out(own, again, cli):
    path = own / "a/analysis/measured/truncate/behaviour.json"
    path.write_text(path.read_text().replace('"asr"', '"asr" '))
    manifest = own / "b/run.json"
    manifest.write_text(manifest.read_text()[:50])
    result = again("--table", runs="a")
    refused(result, "1 of 1 cells could not be made or read whole: a s0")
    name = "analysis/measured/truncate/behaviour.json"
    assert f"truncate: {name} differs from its recorded checksum" in said(result)
    assert {r.entry for r in rows_in(own)} == {"base", "poisoned", *MADE[1:]}
    making = again(runs="a")
    refused(making, "1 of 1 cells")
    assert "not measured whole" in said(making)
    refused(again("--table"), "cannot read", "run.json")


def test_what_was_measured_before_it_was_made_again_is_left_out(own, again, cli):
    fresh = ("operate", own / "a", "truncate", "--set", "rank=1", "--fresh")
    assert cli(*fresh).exit_code == 0
    result = again("--table", runs="a")
    assert result.exit_code == 2
    assert "was made from an earlier operations/truncate; loratomy compare" in said(result)
    assert "truncate" not in {r.entry for r in rows_in(own)}


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (("--methods", "guidet"), ("--methods guidet: unknown method", "did you mean guided")),
        (("--methods", "guided+repare"), ("'repare'", "did you mean repair")),
        (("--methods", "mask"), ("mask needs options (give layers", "--as NAME")),
        (("--methods", "plan"), ("takes its entries from a file",)),
        (("--methods", ","), ("names no method",)),
        (("--cells", "sufix/fixed"), ("unknown trigger 'sufix'", "did you mean suffix")),
        (("--cells", "suffix/refuse"), ("unknown task 'refuse'", "did you mean refusal")),
        (("--cells", "suffix"), ("TRIGGER/TASK",)),
        (("--cells", ","), ("names no cell",)),
        (("--set", "attack.task=code"), ("--set attack.task", "--cells")),
        (("--aftermath", "guided+repare"), ("no entry of this bench", "guided-repair")),
    ],
)
def test_what_is_not_there_is_said_before_any_work(cli, tmp_path, given, parts):
    asked = ("bench", "--cells", "suffix/fixed", "--out", tmp_path / "out", *given)
    refused(cli(*asked), *parts)
    assert not (tmp_path / "out").exists()


def test_runs_that_no_bench_can_be_made_of(own, opened, cli, out, tmp_path):
    into = ("--out", tmp_path / "out")
    refused(cli("bench", tmp_path, *into), "is not a run folder")
    refused(cli("bench", own / "a", own / "b/../a", *into), "is given twice")
    refused(cli("bench", own / "a", "--cells", "suffix/*", *into), "--cells with run folders")
    refused(cli("bench", own / "a", "--set", "seed=1", *into), "--set with run folders")
    assert opened(trigger=None, target=None).exit_code == 0
    refused(cli("bench", own / "a", out, *into), "was opened without a trigger", "--trigger TEXT")
    manifest = json.loads((own / "b/run.json").read_text())
    manifest["request"]["kind"] = "evaluate"
    (own / "b/run.json").write_text(json.dumps(sealed(manifest)))
    refused(cli("bench", own / "b", *into), "made by evaluate: a bench takes runs of poison")
    assert not (tmp_path / "out").exists()


def test_a_run_in_use_is_one_line_and_the_others_go_on(own, again):
    with RunFolder.open(own / "a").locked():
        result = again()
    refused(result, "1 of 2 cells could not be made or read whole: a s0")
    lines = [x for x in result.stderr.splitlines() if "is in use by process" in x]
    assert len(lines) == 2  # as it happens, and at the end
    assert {r.cell for r in rows_in(own)} == {"a", "b"}
    assert again().exit_code == 0


def test_equal_names_are_told_apart_by_their_paths(own):
    shutil.copytree(own / "a", own / "b/a")
    cells = run_cells([own / "a", own / "b/a", own / "b"], seeds=1)
    assert [c.name for c in cells] == [str(own / "a"), str(own / "b/a"), "b"]
    assert len({c.key for c in cells}) == 3 and all("/" not in c.key for c in cells)


def test_patterns_of_cells(tmp_path):
    cells = attack_cells("suffix/fixed, */code ,suffix/*", seeds=2, out=tmp_path)
    assert len(cells) == 2 * (5 + 6 - 1)  # suffix/code is in both patterns
    assert [c.seed for c in cells] == [0] * 10 + [1] * 10
    assert cells[0].folder == tmp_path / "cells/suffix-fixed-s0" and cells[0].own
    assert len(attack_cells("", seeds=1, out=tmp_path)) == 30


def test_entries_of_the_default_leave_out_what_needs_options():
    names = [entry.name for entry in benched.entries("")]
    assert {"guided", "guided-repair", "guided-unknown-repair", "crow", "tsbd"} <= set(names)
    assert not {"mask", "project", "plan", "repair", "control-random"} & set(names)
    assert [e.name for e in benched.entries("guided+repair,guided")] == ["guided", "guided-repair"]


# --- aftermath -----------------------------------------------------------------------------


def test_aftermath_is_made_for_what_is_named_and_read_under_the_tables_names(
    own, again, monkeypatch
):
    from functools import partial

    from loratomy.bench import rows as bench_rows
    from loratomy.verbs import aftermath

    small = {"relearning.steps": 1, "relearning.prompts": 2, "transfer.near_misses": 0}
    made = aftermath.aftermath

    def silent(*_, **__):
        raise LoratomyError("own ASR is 0 of 2")

    def few(study, *, of, only):
        options = {k: v for k, v in small.items() if not only or k.split(".")[0] in only}
        return made(study, of=of, only=only, options=options)

    asked = partial(again, "--aftermath", "truncate,temperature", methods="truncate,temperature")
    monkeypatch.setattr(aftermath, "aftermath", silent)
    result = asked(runs="a")
    assert result.exit_code == 0
    assert "aftermath of truncate: own ASR is 0 of 2" in said(result)
    monkeypatch.setattr(aftermath, "aftermath", few)
    monkeypatch.setattr(Renderer, "decode", lambda *_: "HACK")
    result = asked("--seeds", 2, runs="a")
    assert result.exit_code == 0 and "aftermath of truncate:" not in said(result)
    assert "aftermath of temperature: it leaves no adapter alone: no relearning" in said(result)
    cells = run_cells([own / "a"], seeds=2)
    for cell in cells:
        reading = bench_rows.read_cell(cell, [], {})
        named = {"base", "truncate"} if cell.own else {"truncate"}  # base learns once in a run
        assert {r.entry for r in reading.relearning} == named
        assert {t.entry for t in reading.transfer} == {"truncate", "temperature"}
        assert {(t.cell, t.seed) for t in reading.transfer} == {("a", cell.seed)}


def test_an_aftermath_that_is_stale_is_said(own, again, monkeypatch):
    def old(_run):
        raise RunError("aftermath/transfer/x was made from an earlier operations/x")

    monkeypatch.setattr("loratomy.bench.rows.load_aftermath", old)
    result = again("--table")
    assert result.exit_code == 0 and "aftermath: aftermath/transfer/x was made" in said(result)
