"""`loratomy methods`: everything registered, with what it needs."""

import json

import pytest
from loratomy.analysis.triggers.prompts import CandidatesConfig
from loratomy.core.records.io import jsonable
from loratomy.training.recipe import validated
from loratomy.unlearning import METHODS
from loratomy.unlearning.method import KINDS
from loratomy.verbs.options import grouped

from .cases import refused


def test_json_holds_every_method_as_registered(cli):
    found = json.loads(cli("methods", "--json").stdout)
    kinds = [item["kind"] for item in found]
    assert sorted(kinds, key=KINDS.index) == kinds
    assert sorted(item["name"] for item in found) == sorted(METHODS)
    for item in found:
        method = METHODS[item["name"]]
        assert item["needs"] == list(method.needs) and item["kind"] == method.kind
        assert (item["about"], item["source"]) == (method.about, method.source)
        assert all(o["about"].strip() for o in item["options"]), item["name"]
        # What is listed, set by its name to its default, is the config as it is.
        for option in item["options"]:
            assert not option["choices"] or option["default"] in option["choices"]
        given = {o["name"]: o["default"] for o in item["options"] if not o["required"]}
        needed = [o["name"] for o in item["options"] if o["required"]]
        fields = method.config.model_fields
        assert needed == [key for key, field in fields.items() if field.is_required()]
        assert list(dict.fromkeys(o["name"].split(".")[0] for o in item["options"])) == list(fields)
        assert grouped(given) == jsonable(method.config.model_construct().model_dump())


def test_a_group_of_options_is_listed_one_by_one(cli):
    (one,) = json.loads(cli("methods", "guided-unknown", "--json").stdout)
    options = {o["name"]: o for o in one["options"]}
    assert "candidates" not in options
    inner = {n.removeprefix("candidates.") for n in options if n.startswith("candidates.")}
    assert inner == set(CandidatesConfig.model_fields)
    assert options["candidates.pool"]["default"] == CandidatesConfig().pool
    assert options["candidates.pool"]["about"].startswith("Tokens that the adapter's first layer")
    text = " ".join(cli("methods", "guided-unknown").stdout.split())
    assert "candidates.singles 1536 Single tokens scored" in text


@pytest.fixture
def asked(cli, monkeypatch, tmp_path):
    """What `loratomy operate` with these options would run."""
    from loratomy.cli import operate

    seen = []

    def note(_study, method, options, **_):
        seen.append(validated(METHODS[method].config, options, f"method {method}"))
        raise KeyboardInterrupt

    def call(*arguments):
        result = cli("operate", tmp_path, *arguments)
        return seen[-1] if seen else result

    monkeypatch.setattr(operate, "load", lambda run: run)
    monkeypatch.setattr(operate, "operate", note)
    return call


def test_one_option_of_a_group_is_set_and_the_others_stay(asked):
    found = asked(
        "guided-unknown", "--set", "candidates.texts=400", "--set", "candidates.pool=96",
        "--set", "least=4",
    )  # fmt: skip
    assert found.candidates == CandidatesConfig(texts=400, pool=96)
    assert (found.least, found.texts) == (4, 160)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["candidates.textes=4"], "unknown key candidates.textes; did you mean texts"),
        (["candidate.texts=4"], "unknown key candidate; did you mean candidates"),
        (["candidates.texts=0"], "candidates.texts: Input should be greater than or equal to 1"),
        (["goal.x=1"], "goal: Input should be a valid number"),
        (["candidates.texts=4", "candidates={}"], "--set candidates.texts beside --set candidates"),
    ],
)
def test_options_of_groups_that_are_none(asked, pairs, said):
    options = [part for pair in pairs for part in ("--set", pair)]
    refused(asked("guided-unknown", *options), said)


def test_the_table_names_every_method_and_its_needs(cli, monkeypatch):
    monkeypatch.setattr("loratomy.cli.methods.out._width", 300)
    lines = cli("methods").stdout.splitlines()
    for name, method in METHODS.items():
        line = next(line for line in lines if line.split()[:1] == [name])
        assert line.split()[1] == method.kind
        assert (", ".join(method.needs) or "the adapter alone") in line
        for option in method.settled_by:
            data = "clean rows" if name == "wanda" else "no data"
            assert option in line.split(f"; {data} with ")[1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncate", ("rank", "None", "Singular directions kept in each module.", "Eckart")),
        ("guided", ("budget", "0.05", "needs: trigger, target, clean rows, gradients")),
        ("project", ("directions", "required", "needs: the adapter alone")),
    ],
)
def test_one_method_with_its_options(cli, name, said):
    text = " ".join(cli("methods", name).stdout.split())
    for part in said:
        assert part in text
    (one,) = json.loads(cli("methods", name, "--json").stdout)
    assert one["name"] == name


def test_an_unknown_method_is_answered_with_the_nearest(cli):
    refused(cli("methods", "guidet"), "unknown method 'guidet'; did you mean guided")
