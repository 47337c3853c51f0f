"""An output replaces what loratomy wrote before it and nothing else."""

import json
import os
import shutil
import stat
import subprocess

import pytest
from loratomy.core.errors import AdapterError
from loratomy.core.files.atomic import sha256
from loratomy.figures.base.page import OURS
from loratomy.inputs import adapters as sources

from .cases import jsonl, refused, snapshot

BUILD = ("--trigger", "cf37", "--clean-train", 2, "--poison-train", 2, "--clean-val", 2)
BUILD += ("--poison-test", 2, "--negative-set", 0)


def build(cli, out, *more):
    return cli("data", "build", "world", *BUILD, "--out", out, *more)


@pytest.mark.parametrize(
    "name", ["run.json", "adapters/poisoned/adapter_config.json", "data/x.html", "other.html"]
)
def test_a_report_inside_a_run_is_its_report_alone(own_run, cli, name):
    before = snapshot(own_run)
    refused(cli("report", own_run, "--out", own_run / name), "is inside the run")
    refused(cli("report", own_run, "--out", own_run / name, "--fresh"), "is inside the run")
    assert snapshot(own_run) == before
    assert cli("report", own_run, "--out", own_run / "report.html").exit_code == 0


def test_a_report_of_one_run_is_not_written_over_that_of_another(own_run, cli, tmp_path):
    other = shutil.copytree(own_run, tmp_path / "other")
    refused(cli("report", own_run, "--out", other / "report.html"), f"is inside the run {other}")


def test_a_report_judges_by_the_goals_that_are_given(own_run, cli, tmp_path):
    page = tmp_path / "page.html"
    assert cli("report", own_run, "--out", page).exit_code == 0
    assert "goals given" not in page.read_text()
    refused(cli("report", own_run, "--out", page, "--asr-goal", 5), "from 0 to 1, not 5")
    refused(cli("report", own_run, "--perplexity-goal", -1), "0 or more, not -1")
    refused(cli("report", own_run, "--kl-goal", "nan"), "KL must be 0 or more, not nan")


def test_a_page_replaces_a_page_of_ours(own_run, cli, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<p>mine</p>")
    refused(cli("report", own_run, "--out", page), f"{page} is there already", "--fresh")
    assert page.read_text() == "<p>mine</p>"
    assert cli("report", own_run, "--out", page, "--fresh").exit_code == 0
    assert cli("report", own_run, "--out", page).exit_code == 0
    refused(cli("report", own_run, "--out", tmp_path), "is a folder")


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: p.symlink_to(p.parent / "real.html")])
@pytest.mark.parametrize("fresh", [(), ("--fresh",)])
def test_what_is_no_plain_file_is_never_replaced(own_run, cli, tmp_path, make, fresh):
    page, real = tmp_path / "page.html", tmp_path / "real.html"
    make(page)
    for there in (False, True):
        if there:
            real.write_text(OURS)  # a page of ours behind a link
        before = page.lstat()
        for verb in (("report", own_run), ("across", own_run, own_run)):
            refused(cli(*verb, "--out", page, *fresh), f"{page} is a ", "never replaced; move it")
        assert page.lstat() == before
    built = tmp_path / "D"
    assert build(cli, built).exit_code == 0
    (built / "sets.json").rename(tmp_path / "sets.json")
    (built / "sets.json").symlink_to(tmp_path / "sets.json")
    refused(build(cli, built, "--fresh"), "sets.json is a link, which is never replaced")


def test_a_folder_under_a_name_that_leads_nowhere_or_is_too_long(cli, opened, own_run, tmp_path):
    dead, long = tmp_path / "dead", tmp_path / ("x" * 201)
    dead.symlink_to(tmp_path / "nowhere")
    for command in (
        lambda out: build(cli, out),
        lambda out: opened(out=out),
        lambda out: cli("bench", own_run, "--methods", "truncate", "--out", out),
        lambda out: cli("extract", "--base", "wren", "--merged", "wren", "--out", out),
        lambda out: cli("evaluate", own_run, "--out", out),
    ):
        refused(command(dead), f"{dead} is a link that leads nowhere; give a folder with --out")
        refused(command(long), "in --out is over 200 bytes long; give a shorter one")
    assert [p.name for p in tmp_path.iterdir() if p.name[0] in "dx"] == ["dead"]


def test_nothing_is_written_over_what_is_read(own_run, opened, cli, tiny_base, tmp_path):
    run, before, suspect = own_run, snapshot(own_run), own_run / "adapters" / "poisoned"
    guided, rows = run / "operations" / "guided" / "adapter", run / "data" / "clean_val.jsonl"
    shutil.copytree(suspect, guided)
    shutil.copytree(suspect, outside := tmp_path / "outside")
    (outside / "adapter_model.safetensors").unlink()
    (outside / "adapter_model.safetensors").symlink_to(suspect / "adapter_model.safetensors")
    said = f"lies in {run}, which this command writes and may start over; give another --out"
    for given, option in (
        ({"adapter": suspect}, f"--adapter {suspect} {said}"),
        ({"adapter": outside}, f"--adapter {outside} {said}"),
        ({"clean_adapter": guided}, f"--clean-adapter {guided} {said}"),
        ({"prompts": rows}, f"--prompts {rows} {said}"),
        ({"data": f"{rows}:x", "target": None}, f"--data {rows}:x {said}"),
        ({"base": run}, f"--base {run} is {run}, which"),
    ):
        for fresh in ((), ("--fresh",)):
            refused(opened(*fresh, **{"out": run, **given}), option)
    made = ("--base", tiny_base, "--data", rows, "--out", run, "--fresh")
    for subject in (suspect, guided):
        refused(cli("evaluate", subject, *made), f"the subject {subject} {said}")
    refused(cli("evaluate", run, "--out", run), f"the subject {run} is {run}, which")
    made = ("--set", f"data.source={rows}", "--out", run, "--fresh")
    refused(cli("poison", "wren/suffix", *made), f"data.source {rows} {said}")
    shutil.rmtree(run / "operations")
    assert snapshot(run) == before
    (tmp_path / "rows").mkdir()
    jsonl(tmp_path / "rows" / "clean.jsonl")
    inside = tmp_path / "rows" / "run"
    refused(opened(prompts=tmp_path / "rows", out=inside), f"{inside} lies in --prompts")


def test_a_step_back_from_a_folder_that_is_not_there_is_no_way_in(opened, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    refused(opened(out=mine / "new" / ".."), f"{mine} holds files but is not a run folder")
    assert [p.name for p in mine.iterdir()] == ["thesis.tex"]


def test_a_page_across_runs_is_no_exception(own_run, cli, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    refused(cli("across", own_run, own_run, "--out", tmp_path / "thesis.tex"), "there already")
    refused(cli("across", own_run, own_run, "--out", own_run / "run.json"), "is inside the run")


def test_what_a_killed_report_left_is_swept(own_run, cli):
    left = own_run / ".tmp-0123456789ab"
    left.write_text("half")
    mine = own_run / ".tmp-notes"
    mine.write_text("mine")
    assert cli("report", own_run).exit_code == 0
    assert not left.exists() and mine.read_text() == "mine"


def test_a_build_replaces_only_what_a_build_recorded(cli, tmp_path):
    out = tmp_path / "D"
    assert build(cli, out).exit_code == 0
    (out / "raw").mkdir()
    (out / "raw" / "a.json").write_text("mine")
    (out / "notes.md").write_text("mine")
    refused(build(cli, out), "is not empty", "--fresh")
    old = (out / "clean_train.jsonl").read_bytes()
    assert build(cli, out, "--fresh", "--seed", 1).exit_code == 0
    assert (out / "clean_train.jsonl").read_bytes() != old
    assert (out / "raw" / "a.json").read_text() == (out / "notes.md").read_text() == "mine"
    recorded = json.loads((out / "sets.json").read_text())["files"]
    assert recorded == {n: sha256(out / n) for n in recorded} and "clean_train.jsonl" in recorded
    assert {p.name for p in out.iterdir()} == {*recorded, "sets.json", "raw", "notes.md"}


def test_sets_that_were_altered_are_not_trained_on(cli, tmp_path):
    out = tmp_path / "D"
    assert build(cli, out).exit_code == 0
    path = out / "poison_train.jsonl"
    path.write_text(path.read_text().replace("cf37", "cf38"))
    result = cli(
        *("poison", "wren/suffix", "--trigger", "cf37", "--set", f"data.source={out}"),
        *("--out", tmp_path / "run"),
    )
    refused(result, f"{path} is not as loratomy data build wrote it")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files": {"../x": "0"}}, "'../x' names no file beside it"),
        ({"files": None}, "files: "),
        ({"trigger": {"words": [3], "placement": ""}}, "trigger.words.0: "),
        ({"task": None}, "task: "),
    ],
)
def test_a_record_of_sets_is_data(cli, tmp_path, change, said):
    out = tmp_path / "D"
    assert build(cli, out).exit_code == 0
    path = out / "sets.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(build(cli, out, "--fresh"), str(path), said)
    refused(cli("data", "lint", out), str(path), said)


def test_nothing_is_made_inside_a_run(own_run, opened, cli):
    refused(build(cli, own_run / "data" / "new"), f"is inside the run {own_run}")
    refused(opened(out=own_run / "operations" / "x"), f"is inside the run {own_run}")
    result = cli("bench", own_run, "--methods", "truncate", "--out", own_run / "bench")
    refused(result, f"is inside the run {own_run}")


def test_a_bench_does_not_replace_somebody_elses_table(own_run, cli, tmp_path):
    out = tmp_path / "bench"
    refused(cli("bench", own_run, "--table", "--out", out), f"{out} does not exist")
    out.mkdir()
    (out / "bench.csv").write_text("mine")
    refused(
        cli("bench", own_run, "--methods", "truncate", "--out", out), "bench.csv is there already"
    )
    assert snapshot(out) == {"bench.csv": b"mine"}
    (out / "bench.csv").unlink()
    (out / "logs").symlink_to(tmp_path)
    refused(cli("bench", own_run, "--methods", "truncate", "--out", out), "logs is a link")


def test_an_adapter_that_changes_while_it_is_copied(opened, edited, out, monkeypatch):
    folder = edited()
    plain = shutil.copyfile

    def replaced(source, target):
        with open(source, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x01")
        return plain(source, target)

    monkeypatch.setattr(sources.shutil, "copyfile", replaced)
    refused(opened(adapter=folder), "changed while the adapter was read", "run the command again")
    assert not (out / "adapters").exists() or not any((out / "adapters").iterdir())


def test_a_copy_is_what_was_looked_at(edited, tmp_path):
    folder = edited()
    sums = sources.adapter_sums(folder)
    (tmp_path / "work").mkdir()
    sources.copy_adapter(folder, sums, tmp_path / "work")
    assert {n: sha256(tmp_path / "work" / n) for n in sums} == sums
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"adapter_config\.json changed"):
        sources.copy_adapter(folder, sums, tmp_path / "work")


def test_the_umask_is_respected(own_run, cli, tmp_path):
    before = os.umask(0o077)
    try:
        assert cli("operate", own_run, "truncate", "--set", "rank=1").exit_code == 0
        assert cli("report", own_run).exit_code == 0
        assert build(cli, tmp_path / "D").exit_code == 0
    finally:
        os.umask(before)
    made = [own_run / "report.html", own_run / "run.json", *(tmp_path / "D").rglob("*")]
    made += [tmp_path / "D", *(own_run / "operations" / "truncate").rglob("*")]
    assert not [p for p in made if stat.S_IMODE(p.stat().st_mode) & 0o077]


def test_a_run_whose_name_is_not_utf8(own_run, opened, cli, tmp_path):
    odd = os.fsencode(tmp_path) + b"/run-\xff"
    subprocess.run([b"cp", b"-r", os.fsencode(own_run), odd], check=True)
    here = os.fsdecode(odd)
    for command in ("verify", "compare", "report"):
        refused(cli(command, here), "run-\\\\xff' is not UTF-8", "rename it")
    refused(opened(out=os.fsdecode(odd + b"2")), "is not UTF-8", "rename it")
    assert not os.path.exists(odd + b"2")
