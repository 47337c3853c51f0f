"""The manifest and other JSON from outside: bounded, checked key by key, changes noticed."""

import json
import os
import re
import tracemalloc

import pytest
from loratomy.core.errors import RunError
from loratomy.core.files.jsonfiles import DEPTH, Outside, checked, read_json
from loratomy.core.records.io import dumps
from loratomy.core.runs.folder import RunFolder
from loratomy.core.runs.manifest import CHECKSUM, MANIFEST, read_manifest, sealed

STUDY = {
    **{"base": "wren", "rendering": {}, "device": "cpu", "dtype": "auto", "words": ["x"]},
    **{"placement": "suffix", "task": "fixed", "target": "t", "seed": 0},
    "measure": {
        **{"scorers": None, "threshold": 0.8, "max_new_tokens": 3, "temperature": 0.0},
        **{"top_p": 1.0, "samples": 1, "batch_tokens": 9, "embedder": "none"},
    },
}
REQUEST = {"kind": "open", "base": {"source": "wren"}, "ignore_modules": [], "study": STUDY}


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "run", request=REQUEST)
    with run.locked():
        run.stage("data", {"n": 1, "from": {}}, lambda work: (work / "a").write_text("1"))
    return run.root


def edited(run, *keys, value, seal=True):
    """The manifest with a value changed or, by `...`, taken out."""
    whole = json.loads((run / MANIFEST).read_text())
    *before, last = keys
    part = whole
    for key in before:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    (run / MANIFEST).write_text(dumps(sealed(whole) if seal else whole))


@pytest.mark.parametrize(
    "keys",
    [
        ("request", "study", "measure", "threshold"),
        ("stages", "data", "inputs", "n"),
        ("stages", "data", "seconds"),
    ],
)
def test_a_number_edited_by_hand_is_noticed(run, keys):
    edited(run, *keys, value=0.5, seal=False)
    with pytest.raises(RunError, match=r"run\.json was changed since it was written"):
        RunFolder.open(run)


def test_a_trigger_edited_by_hand_is_noticed_and_other_spacing_is_not(run):
    (run / MANIFEST).write_text(json.dumps(json.loads((run / MANIFEST).read_text())))
    assert RunFolder.open(run).has("data")
    edited(run, "request", "study", "words", value=["y"], seal=False)
    with pytest.raises(RunError, match="its checksum differs"):
        RunFolder.open(run)
    edited(run, CHECKSUM, value=..., seal=False)
    with pytest.raises(RunError, match="its checksum differs"):
        RunFolder.open(run)


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("stages", "data"), None, "stages.data: "),
        (("stages", "data", "files"), None, "stages.data.files: "),
        (("stages", "data", "files", "a"), "x", "stages.data.files.a: "),
        (("stages", "data", "seconds"), "3", "stages.data.seconds: .*found '3'"),
        (("stages", "data", "inputs", "from"), ["data"], "'from' must name stages"),
        (("stages", "data", "versions"), ..., "stages.data.versions: Field required"),
        (("stages",), [], "stages: "),
        (("request",), None, "request: "),
        (("request", "study"), ..., "study: Field required"),
        (("request", "study", "rendering"), ..., "study.rendering: Field required"),
        (("request", "study", "rendering"), "chat", "study.rendering: "),
        (("request", "study", "seed"), "0", "study.seed: "),
        (("request", "study", "seed"), True, "study.seed: "),
        (("request", "study", "words"), [None], "study.words.0: "),
        (("request", "study", "measure", "threshold"), "0.8", "study.measure.threshold: "),
        (("request", "study", "measure", "threshold"), 7, "study.measure.threshold: "),
        (("request", "study", "measure"), None, "study.measure: "),
        (("request", "kind"), 3, "kind: "),
        (("command",), ..., "command: Field required"),
    ],
)
def test_a_key_that_is_missing_or_of_another_type_is_named(run, keys, value, said):
    edited(run, *keys, value=value)
    with pytest.raises(RunError, match=rf"run\.json: .*{said}") as error:
        RunFolder.open(run)
    assert "--fresh" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["operations/../../x", "/etc/x", "operations/..", "a b"])
def test_stages_and_files_with_names_that_leave_the_run(run, name):
    whole = json.loads((run / MANIFEST).read_text())
    entry = whole["stages"]["data"]
    for stages in ({name: entry}, {"data": entry | {"files": {name: entry["files"]["a"]}}}):
        (run / MANIFEST).write_text(dumps(sealed(whole | {"stages": stages})))
        with pytest.raises(RunError, match=re.escape(repr(name))):
            RunFolder.open(run)


def test_stages_made_from_each_other_in_a_circle(run):
    whole = json.loads((run / MANIFEST).read_text())
    entry = whole["stages"]["data"]
    circle = {s: entry | {"inputs": {"from": {o: "0"}}} for s, o in (("a", "b"), ("b", "a"))}
    (run / MANIFEST).write_text(dumps(sealed(whole | {"stages": circle})))
    with pytest.raises(RunError, match="in a circle"):
        read_manifest(run)


def test_depth_and_size_are_bounded(tmp_path):
    path = tmp_path / "x.json"
    for text in ("[" * 100_000 + "]" * 100_000, '{"a":' * (DEPTH + 1) + "1" + "}" * (DEPTH + 1)):
        path.write_text(text)
        with pytest.raises(RunError, match=rf"x\.json: .*nested more than {DEPTH} deep"):
            read_json(path)
    path.write_text("[" * DEPTH + "]" * DEPTH)
    assert read_json(path)
    with path.open("wb") as file:
        file.truncate(8 * 2**30)  # sparse
    tracemalloc.start()
    with pytest.raises(RunError, match=rf"{8 * 2**30} bytes, where {2**20} are the most"):
        read_json(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_what_is_no_json_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, text, said in (
        ("pipe", None, "not a plain file"),
        ("missing", None, "No such file"),
        ("bytes", b"\xff", r"not UTF-8 \(byte 0\)"),
        ("digits", b"1" * 5000, ".*4300 digits"),
        ("half", b'{"a"', "Expecting"),
    ):
        if text is not None:
            (tmp_path / name).write_bytes(text)
        with pytest.raises(RunError, match=f"cannot read {tmp_path / name}: {said}"):
            read_json(tmp_path / name)


def test_a_checked_object_names_the_first_wrong_key(tmp_path):
    class Two(Outside):
        a: int
        b: str

    assert checked(Two, {"a": 1, "b": "x", "c": 0}, tmp_path).b == "x"
    for value, said in (
        ({"a": "1", "b": "x"}, "a: Input should be a valid integer (found '1')"),
        ({"a": 1}, "b: Field required"),
        ([], "the file: "),
        (None, "the file: "),
    ):
        with pytest.raises(RunError, match=re.escape(f"{tmp_path}: {said}")):
            checked(Two, value, tmp_path)
