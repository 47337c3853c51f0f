"""A run folder from somebody else: nothing outside it is read, changed or removed."""

import json
import os
import shutil

import pytest
from loratomy.core.records.io import dumps
from loratomy.core.runs.manifest import MANIFEST, sealed

from .cases import refused, snapshot

COMMANDS = (
    ("verify",),
    ("probe", "--only", "spectra"),
    ("operate", "truncate", "--set", "rank=1"),
    ("compare",),
    ("compare", "--fresh"),
    ("report",),
    ("aftermath",),
    ("evaluate",),
)


@pytest.fixture
def mine(tmp_path):
    """Files that are nobody's business."""
    folder = tmp_path / "mine"
    (folder / "poisoned").mkdir(parents=True)
    (folder / "poisoned" / "thesis.tex").write_text("years of work")
    (folder / "base").mkdir()
    (folder / "base" / "notes.md").write_text("mine")
    return folder


def call(cli, run, command):
    return cli(command[0], run, *command[1:])


@pytest.mark.parametrize(
    "place", ["analysis", "analysis/answers", "operations", "adapters/poisoned", "data", ".partial"]
)
def test_a_link_in_a_run_stops_every_command_before_it_changes_anything(
    own_run, cli, mine, place, opened
):
    link = own_run / place
    if link.exists():
        shutil.rmtree(link)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(mine, target_is_directory=True)
    before, there = snapshot(mine), (own_run / MANIFEST).read_bytes()
    for command in COMMANDS:
        refused(call(cli, own_run, command), f"{link} is a link (to {mine})", "remove the link")
    refused(opened("--fresh", out=own_run), f"{link} is a link (to {mine})")
    assert snapshot(mine) == before and (own_run / MANIFEST).read_bytes() == there
    assert (own_run / "data").exists()


@pytest.mark.parametrize("name", ["report.html", "figures/where.html", ".lock", ".lock.json"])
def test_a_file_that_is_a_link(own_run, cli, mine, name):
    (own_run / name).parent.mkdir(exist_ok=True)
    (own_run / name).unlink(missing_ok=True)
    (own_run / name).symlink_to(mine / "base" / "notes.md")
    for command in COMMANDS:
        refused(call(cli, own_run, command), f"{own_run / name} is a link")
    assert (mine / "base" / "notes.md").read_text() == "mine"


def test_a_pipe_is_not_waited_for(own_run, cli):
    path = own_run / "data" / "clean_train.jsonl"
    path.unlink()
    os.mkfifo(path)
    for command in COMMANDS:
        refused(call(cli, own_run, command), f"{path} is a pipe, a socket or a device")


def test_a_lock_with_a_second_name_is_left_alone(own_run, cli, mine):
    (own_run / ".lock").unlink(missing_ok=True)
    os.link(mine / "base" / "notes.md", own_run / ".lock")
    refused(cli("probe", own_run, "--only", "spectra"), "the same file as another one")
    assert (mine / "base" / "notes.md").read_text() == "mine"


def test_a_stage_that_leaves_the_run(own_run, cli, tmp_path):
    whole = json.loads((own_run / MANIFEST).read_text())
    stages = whole["stages"] | {"operations/../../outside_op": whole["stages"]["data"]}
    (own_run / MANIFEST).write_text(dumps(sealed(whole | {"stages": stages})))
    for command in COMMANDS:
        refused(call(cli, own_run, command), "'operations/../../outside_op' is no name of a stage")
    assert not (tmp_path / "outside_op").exists()


def test_fresh_does_not_remove_what_it_did_not_write(own_run, opened):
    for name in ("data/raw/notes.md", "figures/mine.png", "operations/x/thesis.tex"):
        path = own_run / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        before = snapshot(own_run)
        refused(opened("--fresh", out=own_run), f"{path} was not written by loratomy", "move it")
        assert snapshot(own_run) == before
        shutil.rmtree(path.parent)
    assert opened("--fresh", out=own_run).exit_code == 0


def test_a_file_that_nobody_recorded_is_not_read(own_run, cli):
    assert cli("operate", own_run, "truncate", "--set", "rank=1").exit_code == 0
    planted = own_run / "operations" / "truncate" / "weights.safetensors"
    planted.write_bytes(b"x")
    refused(cli("compare", own_run), f"{planted} is not recorded", "move it away")
    assert f"{planted} is not recorded" in cli("verify", own_run).stderr
    planted.unlink()
    assert cli("verify", own_run).exit_code == 0


@pytest.mark.parametrize("part", ["operations/truncate/operation.json", "data/poison_test.jsonl"])
def test_every_command_checks_what_it_reads(own_run, cli, part):
    assert cli("operate", own_run, "truncate", "--set", "rank=1").exit_code == 0
    assert cli("compare", own_run).exit_code == 0
    path = own_run / part
    text = path.read_text()
    path.write_text(text.replace('"directions_cut": ', '"directions_cut": 9').replace("w", "v", 1))
    for command in (["compare"], ["report"], ["aftermath", "--of", "truncate"]):
        refused(cli(command[0], own_run, *command[1:]), f"{path} differs from its recorded")


def test_an_altered_analysis_is_not_combined(own_run, cli):
    assert cli("probe", own_run, "--only", "spectra").exit_code == 0
    path = next((own_run / "analysis" / "spectra").glob("*.json"))
    path.write_text(path.read_text().replace("1", "2", 1))
    refused(cli("report", own_run), f"{path} differs")
    refused(cli("probe", own_run, "--only", "spectra"), f"{path} differs")
