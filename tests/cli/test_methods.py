"""`loratomy methods`: everything registered, with what it needs."""

import json

import pytest
from loratomy.unlearning import METHODS

from .cases import refused


def test_json_holds_every_method_as_registered(cli):
    found = json.loads(cli("methods", "--json").stdout)
    assert [item["name"] for item in found] == list(METHODS)
    for item, (_, method) in zip(found, METHODS.items(), strict=True):
        assert item["needs"] == list(method.needs) and item["kind"] == method.kind
        assert (item["about"], item["source"]) == (method.about, method.source)
        assert [o["name"] for o in item["options"]] == list(method.config.model_fields)
        assert all(o["about"].strip() for o in item["options"]), item["name"]


def test_the_table_names_every_method_and_its_needs(cli, monkeypatch):
    monkeypatch.setattr("loratomy.cli.methods.out._width", 300)
    lines = cli("methods").stdout.splitlines()
    for name, method in METHODS.items():
        line = next(line for line in lines if line.split()[:1] == [name])
        assert line.split()[1] == method.kind
        assert (", ".join(method.needs) or "the adapter alone") in line
        for option in method.settled_by:
            assert option in line.split("no data with")[1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncate", ("rank", "None", "Singular directions kept in each module.", "Eckart")),
        ("guided", ("budget", "0.05", "needs: trigger, target, clean rows, gradients")),
        ("project", ("directions", "to be given", "needs: the adapter alone")),
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
