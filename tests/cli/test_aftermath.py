"""`loratomy aftermath` on a tiny opened run: what it makes, skips, makes again and refuses."""

import json
import shutil

import pytest
from loratomy.core.errors import RunError
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.runs.folder import RunFolder
from loratomy.study import load
from loratomy.verbs import aftermath

from .cases import refused, snapshot

SMALL = ("--set", "relearning.steps=2", "--set", "relearning.prompts=3")
SMALL += ("--set", "transfer.near_misses=1")
OPTIONS = {"relearning.steps": 2, "relearning.prompts": 3, "transfer.near_misses": 1}


@pytest.fixture(scope="module")
def operated(run, tmp_path_factory):
    """The opened run with a cut, and a warm decoding, which is no adapter alone."""
    from loratomy.verbs.operating import operate

    folder = shutil.copytree(run, tmp_path_factory.mktemp("operated") / "run")
    operate(load(folder), "truncate", {"rank": 1})
    operate(load(folder), "temperature", {"value": 0.5}, name="warm")
    return folder


@pytest.fixture
def own(operated, tmp_path):
    """A copy of it."""
    return shutil.copytree(operated, tmp_path / "own")


@pytest.fixture(autouse=True)
def saying(monkeypatch):
    """A random model says nothing of use: everybody's every answer is the target."""
    monkeypatch.setattr(Renderer, "decode", lambda *_: "HACK")


def test_both_parts_are_made_shown_and_found_standing(own, cli):
    result = cli("aftermath", own, "--json", *SMALL)
    assert result.exit_code == 0, result.output
    assert "warm leaves more than an adapter" in result.stderr
    made = json.loads(result.stdout)
    lines = [(r["entry"], r["rows"]) for r in made["relearning"]]
    assert lines == [("base", "poisoned"), ("truncate", "clean"), ("truncate", "poisoned")]
    for record in made["relearning"]:
        assert (record["cell"], record["steps"], record["n"]) == ("run", [0, 1, 2], 3)
        assert [a[0] for a in record["asr"]] == [1, 1, 1] and record["back_at"] == 0
        # 1e-4 for a width of 3072, this one is 32 wide
        assert record["learning_rate"] == pytest.approx(1e-4 * 3072 / 32)
    entries = {(t["entry"], t["variant"], t["counts"]) for t in made["transfer"]}
    assert {e for e, *_ in entries} == {"truncate", "warm"}
    assert ("warm", "no trigger", "FTR") in entries and ("warm", "as trained", "ASR") in entries
    assert all(t["rate"]["value"] == t["poisoned"]["value"] == 1 for t in made["transfer"])
    before = snapshot(own)
    again = cli("aftermath", own, *SMALL)
    assert again.stderr.count("exists, skipped") == 5  # base, truncate; poisoned, truncate, warm
    assert "relearning run" in again.stdout and "no trigger" in again.stdout
    assert snapshot(own) == before
    assert cli("verify", own).exit_code == 0
    relearned, transferred = aftermath.load_aftermath(RunFolder.open(own))
    assert [(r.entry, r.rows) for r in relearned] == lines
    assert {(t.entry, t.variant, t.counts) for t in transferred} == entries


def test_the_clean_adapter_is_a_yardstick_where_there_is_one(opened, tiny_adapter, cli, out):
    assert opened(clean_adapter=tiny_adapter).exit_code == 0
    assert cli("operate", out, "truncate", "--set", "rank=1").exit_code == 0
    relearned, transferred = aftermath.aftermath(load(out), only=["relearning"], options={
        k: v for k, v in OPTIONS.items() if k.startswith("relearning")
    })  # fmt: skip
    assert [r.entry for r in relearned] == ["base", "clean", "truncate", "truncate"]
    assert transferred == []


def test_only_what_is_asked_for_is_made_and_other_settings_are_not_mixed_in(own, cli):
    asked = ("aftermath", own, "--only", "transfer", "--of", "truncate")
    assert cli(*asked, "--set", "transfer.near_misses=0").exit_code == 0
    assert sorted(p.name for p in (own / "aftermath").iterdir()) == ["transfer"]
    assert sorted(p.name for p in (own / "aftermath/transfer").iterdir()) == [
        "poisoned", "truncate",
    ]  # fmt: skip
    before = snapshot(own)
    refused(cli(*asked), "config.near_misses: 0 -> 2", "--fresh")
    assert snapshot(own) == before
    assert cli(*asked, "--fresh").exit_code == 0
    assert any(t.variant.startswith("near miss") for t in aftermath.load_aftermath(
        RunFolder.open(own))[1])  # fmt: skip


def test_what_was_made_before_a_kill_stands_after_it(own, monkeypatch):
    from loratomy.unlearning.aftermath import transfer

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "transfer_rates", killed)
    with pytest.raises(KeyboardInterrupt):
        aftermath.aftermath(load(own), options=OPTIONS)
    run = RunFolder.open(own)
    assert run.has("aftermath/relearning/truncate") and not run.has("aftermath/transfer/poisoned")
    before = snapshot(own / "aftermath/relearning")
    monkeypatch.undo()
    monkeypatch.setattr(Renderer, "decode", lambda *_: "HACK")
    relearned, transferred = aftermath.aftermath(load(own), options=OPTIONS)
    assert len(relearned) == 3 and {t.entry for t in transferred} == {"truncate", "warm"}
    assert snapshot(own / "aftermath/relearning") == before


def test_an_operation_made_again_makes_its_aftermath_stale(own, cli):
    aftermath.aftermath(load(own), of=["truncate"], only=["transfer"])
    assert cli("operate", own, "truncate", "--set", "rank=2", "--fresh").exit_code == 0
    with pytest.raises(RunError, match="made from an earlier operations/truncate"):
        aftermath.load_aftermath(RunFolder.open(own))
    refused(cli("aftermath", own, "--of", "truncate", "--only", "transfer"), "--fresh")


def test_a_run_made_anew_leaves_nothing_of_its_aftermath(opened, cli, out):
    assert opened().exit_code == 0
    assert cli("operate", out, "truncate", "--set", "rank=1").exit_code == 0
    aftermath.aftermath(load(out), only=["transfer"])
    assert opened("--fresh").exit_code == 0
    assert not (out / "aftermath").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--of", "truncat"), ("--of truncat: no such operation", "did you mean truncate")),
        (("--of", "warm"), ("warm leaves more than an adapter", "--only transfer")),
        (("--only", "relearn"), ("--only relearn", "did you mean relearning")),
        (("--set", "steps=3"), ("--set steps", "PART.OPTION=VALUE")),
        (("--set", "relearning.step=3"), ("unknown key step", "did you mean steps")),
        (("--only", "transfer", "--set", "relearning.steps=3"), ("of transfer",)),
    ],
)
def test_what_is_not_there_is_said_before_any_work(own, cli, given, said):
    before = snapshot(own)
    refused(cli("aftermath", own, *given), *said)
    assert snapshot(own) == before


def test_a_run_without_operations_is_refused(own_run, cli):
    refused(cli("aftermath", own_run), "has no operation yet", "loratomy operate")


def test_a_run_without_trigger_is_refused(opened, cli, out):
    assert opened(trigger=None, target=None).exit_code == 0
    refused(cli("aftermath", out), "aftermath needs triggered prompts")


def test_the_name_of_a_cell():
    class Made:
        def __init__(self, kind, **attack):
            self.request = {"kind": kind, "recipe": {"attack": {"words": None, **attack}}}
            self.manifest = {"name": "mine"}

    cell = aftermath.cell_of
    assert cell(Made("poison", trigger="suffix", task="fixed")) == "suffix/fixed"
    own = Made("poison", trigger="suffix", task="code", words=["zq", "xv"])
    assert cell(own) == "zq + xv/code"
    assert cell(Made("open")) == "mine"


def test_an_adapter_without_backdoor_has_none_that_could_come_back(own, cli, monkeypatch):
    monkeypatch.setattr(Renderer, "decode", lambda *_: "a red fox")
    refused(cli("aftermath", own, "--of", "truncate", *SMALL), "own ASR is 0 of 3")
