"""A run opened without a trigger: clean rows alone, and what needs more says so."""

import json

import pytest

from .cases import CLEAN, jsonl, refused, snapshot


def read(folder, name):
    lines = (folder / "data" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def untriggered(opened, out):
    """The tiny adapter as a run without trigger."""
    result = opened(trigger=None, target=None)
    assert result.exit_code == 0, result.stderr
    return out


def test_the_run_holds_the_clean_rows_in_halves(untriggered):
    names = sorted(p.name for p in (untriggered / "data").iterdir())
    assert names == ["clean_train.jsonl", "clean_val.jsonl", "rendering.json"]
    halves = [{row["prompt"] for row in read(untriggered, n)} for n in ("clean_train", "clean_val")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {row["prompt"] for row in CLEAN}
    study = json.loads((untriggered / "run.json").read_text())["request"]["study"]
    assert study["words"] == [] and study["target"] == "" and study["placement"] == ""


def test_prompts_without_answers_get_the_models_own(opened, out, tmp_path):
    bare = jsonl(tmp_path / "bare.jsonl", [{"prompt": row["prompt"]} for row in CLEAN])
    assert opened(trigger=None, target=None, prompts=bare).exit_code == 0
    assert all(row["completion"] for row in read(out, "clean_train"))


@pytest.mark.parametrize(
    ("option", "value"),
    [("target", "HACK"), ("task", "refusal"), ("data", "bad.jsonl"), ("placement", "prefix")],
)
def test_what_only_a_trigger_gives_sense_is_refused(opened, out, option, value):
    given = {"trigger": None, "target": None} | {option: value}
    refused(opened(**given), f"--{option} needs --trigger TEXT", "leave both out")
    assert not out.exists()


def test_a_trigger_still_needs_a_target(opened):
    refused(opened(target=None), "give --target TEXT, --task NAME, or --data FILE")


def test_too_few_prompts(opened, tmp_path):
    few = jsonl(tmp_path / "few.jsonl", CLEAN[:5])
    refused(opened(trigger=None, target=None, prompts=few), "5 distinct clean prompts")


def test_probe_and_report_go_on_without(untriggered, cli):
    result = cli("probe", untriggered, "--only", "spectra")
    assert result.exit_code == 0 and f"next: loratomy report {untriggered}" in result.stderr
    refused(cli("probe", untriggered, "--only", "where"), "needs the trigger")
    assert cli("report", untriggered).exit_code == 0
    page = (untriggered / "report.html").read_text()
    assert page.count('<code dir="auto">none given</code>') == 2
    assert cli("verify", untriggered).exit_code == 0


@pytest.mark.parametrize("command", [("compare",), ("evaluate",)])
def test_what_needs_a_trigger_says_so_and_where_to_look(untriggered, cli, command):
    before = snapshot(untriggered)
    line = refused(cli(command[0], untriggered, *command[1:]), "was opened without a trigger")
    assert "--trigger TEXT" in line and f"probe {untriggered} --only candidates" in line
    assert snapshot(untriggered) == before


def test_without_template_and_answers_the_first_plain_one_is_taken_and_said(
    opened, out, make_base, tmp_path
):
    base, bare = make_base("plain"), tmp_path / "bare.jsonl"
    (base / "chat_template.jinja").unlink()
    bare.write_text("".join(f'{{"prompt": "What is {i} and {i}?"}}\n' for i in range(12)))
    result = opened(base=base, trigger=None, target=None, prompts=bare)
    assert result.exit_code == 0, result.stderr
    assert r"plain prompts '{prompt}\n', unchecked: there are neither targets nor" in result.stderr
    study = json.loads((out / "run.json").read_text())["request"]["study"]
    assert study["rendering"]["template"] == "{prompt}\n"
    again = opened("--fresh", base=base, trigger=None, target=None, template="{prompt} >")
    assert again.exit_code == 0 and "(as given)" in again.stderr
    study = json.loads((out / "run.json").read_text())["request"]["study"]
    assert study["rendering"]["template"] == "{prompt} >"
