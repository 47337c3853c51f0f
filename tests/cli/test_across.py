"""`loratomy across` on runs of synthetic records."""

import json
import shutil
import subprocess

import pytest
from loratomy.core.records.io import SCHEMA

from .. import across_runs as make
from .cases import refused

CHROMIUM = shutil.which("chromium")


@pytest.fixture
def two(tmp_path):
    """Runs of 8 and 20 layers with the same backdoor at depth 0.4."""
    return [
        make.run_folder(tmp_path / "small", make.everything(8)),
        make.run_folder(tmp_path / "large", make.everything(20)),
    ]


def test_two_runs_become_tables_and_a_page(cli, two, tmp_path):
    page = tmp_path / "out.html"
    result = cli("across", *two, "--out", page)
    assert result.exit_code == 0, result.stderr
    assert "small" in result.stdout and "20 layers" in result.stdout
    assert "peak 0.44" in result.stdout  # layer 3 of 8: (3 + 0.5) / 8
    said = " ".join(result.stdout.split())
    assert "it is strongest between depth" in said and "in small [0.58] and large [0.59]" in said
    document = page.read_text(encoding="utf-8")
    assert "Effect of removing each layer" in document and "2 runs at equal depth" in document
    assert "http-equiv" in document and str(page) in result.stderr


def test_json_is_the_record(cli, two, tmp_path):
    result = cli("across", *two, "--out", tmp_path / "out.html", "--json")
    body = json.loads(result.stdout)
    assert [run["layers"] for run in body["runs"]] == [8, 20]
    (effect,) = [p for p in body["runs"][0]["profiles"] if p["key"] == "effect"]
    assert effect["depth"][0] == 0.0625 and effect["landmark"]["depth"] == 0.4375
    (pair,) = [a for a in body["agreements"] if a["key"] == "effect"]
    assert pair["n"] == 8 and (pair["first"], pair["second"]) == ("small", "large")


def test_a_missing_analysis_is_named_and_left_out(cli, two, tmp_path):
    third = make.run_folder(tmp_path / "third", {"where": (make.where(12),)})
    result = cli("across", *two, third, "--out", tmp_path / "out.html")
    assert result.exit_code == 0
    assert f"third lacks spectra, difference, patching: loratomy probe {third}" in result.stderr


def test_runs_of_one_name_are_told_apart_by_their_paths(cli, tmp_path):
    runs = [
        make.run_folder(tmp_path / d / "run", make.everything(n)) for d, n in (("a", 4), ("b", 6))
    ]
    result = cli("across", *runs, "--out", tmp_path / "out.html", "--json")
    assert [run["name"] for run in json.loads(result.stdout)["runs"]] == [str(r) for r in runs]


def test_the_layers_of_a_local_base_are_read(cli, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 12}}))
    part = make.run_folder(tmp_path / "part", {"spectra": (make.spectra(6),)}, base=str(base))
    whole = make.run_folder(tmp_path / "whole", {"spectra": (make.spectra(9),)})
    body = json.loads(cli("across", part, whole, "--out", tmp_path / "o.html", "--json").stdout)
    assert [run["layers"] for run in body["runs"]] == [12, 9]
    assert len(body["notes"]) == 1 and "taken as 9" in body["notes"][0]


def test_bad_input_is_one_line(cli, two, tmp_path):
    page = tmp_path / "out.html"
    refused(cli("across", two[0], "--out", page), "give two runs or more", str(two[0]))
    again = tmp_path / "x" / ".." / "small"
    (tmp_path / "x").mkdir()
    refused(cli("across", two[0], again, "--out", page), "is the same run as")
    refused(cli("across", two[0], tmp_path, "--out", page), "is not a run folder")
    refused(cli("across", *two, "--out", tmp_path / "no" / "x.html"), "does not exist")
    refused(cli("across", *two, "--out", tmp_path), "is a folder; name a file")
    other = make.run_folder(tmp_path / "other", {})
    refused(cli("across", two[0], other, "--out", page), "no profile by layer",
            f"loratomy probe {other} --only spectra,where")  # fmt: skip
    manifest = two[1] / "run.json"
    body = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(body | {"schema": SCHEMA - 1}))
    refused(cli("across", *two, "--out", page), f"schema {SCHEMA - 1}", str(two[1]))
    assert not page.exists()


def test_altered_records_are_refused(cli, two, tmp_path):
    path = two[1] / "analysis" / "where" / "0.json"
    path.write_text(path.read_text().replace("24", "25"))
    refused(cli("across", *two, "--out", tmp_path / "o.html"), "differs from its recorded checksum")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_hostile_name_stays_text_in_the_page(cli, two, tmp_path):
    evil = "<script>document.documentElement.dataset.pwned=1<"
    run = make.run_folder(tmp_path / evil, make.everything(5), base="</script><b>bold</b>")
    page = tmp_path / "out.html"
    assert cli("across", two[0], run, "--out", page).exit_code == 0
    flags = "--headless --no-sandbox --disable-gpu --virtual-time-budget=4000 --dump-dom"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'p'}", page.as_uri()]
    document = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    head = document[: document.index(">", document.index("<html"))]
    assert "data-pwned" not in head and 'data-drawn="4"' in head
    body = document.split("<body>", 1)[1].split('<script type="application/json"', 1)[0]
    assert "<b>bold" not in body and "&lt;b&gt;bold&lt;/b&gt;" in body
