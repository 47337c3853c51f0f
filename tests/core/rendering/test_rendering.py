"""What a person writes of a rendering: names, files, texts and arguments, each kept or refused."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loratomy.core.errors import LoratomyError
from loratomy.core.rendering.rendering import (
    Rendering,
    given_arguments,
    given_template,
    pasteable,
    rendering_from,
)


@given(st.text(max_size=20), st.text(max_size=20))
def test_what_a_hint_prints_can_be_pasted(before, after):
    template = f"{before}{{prompt}}{after}".replace("{{", "").replace("{%", "").replace("\0", "")
    if "{prompt}" not in template:
        return
    (typed,) = shlex.split(pasteable(template))
    assert given_template(typed) == template


def test_names_files_and_texts(tmp_path):
    assert given_template("chat") == "chat" and given_template("alpaca") == "alpaca"
    assert given_template(r"Q: {prompt}\nA:") == "Q: {prompt}\nA:"
    assert given_template(r"{prompt} \\n") == r"{prompt} \n"
    jinja = tmp_path / "own.jinja"
    jinja.write_text("{{ messages[0].content }}\\n", encoding="utf-8")
    assert given_template(str(jinja)) == "{{ messages[0].content }}\\n"  # a file is taken as it is


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alpacca", "did you mean alpaca"),
        ("no slot", r"does not contain \{prompt\}"),
        ("", r"does not contain \{prompt\}"),
    ],
)
def test_what_is_no_template(text, said):
    with pytest.raises(LoratomyError, match=said):
        given_template(text)


def test_a_file_that_is_no_template(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("nothing here")
    with pytest.raises(LoratomyError, match="neither a Jinja chat template nor a text"):
        given_template(str(path))
    path.write_bytes(b"\xff{prompt}")
    with pytest.raises(LoratomyError, match="cannot read the template file"):
        given_template(str(path))


def test_arguments_are_json_where_they_parse():
    pairs = ["enable_thinking=false", "a=True", "b=None", "level=high", "n=3", "t=x=y"]
    want = {"enable_thinking": False, "a": True, "b": None, "level": "high", "n": 3, "t": "x=y"}
    assert given_arguments(pairs) == want


@pytest.mark.parametrize(
    "pair", ["enable_thinking", "=x", "a-b=1", "messages=[]", "tools=1", "a=" + "[" * 20_000]
)
def test_arguments_that_are_none(pair):
    with pytest.raises(LoratomyError, match="--template-arg"):
        given_arguments([pair])


def test_a_record_gives_back_what_it_was_made_of():
    made = Rendering(template="chatml", arguments={"x": False}, system="Be brief.", begin="none")
    assert rendering_from(made.model_dump(mode="json"), "here") == made
    with pytest.raises(LoratomyError, match=r"run\.json is no record of a rendering: space"):
        rendering_from({"space": "left"}, "run.json")
    with pytest.raises(LoratomyError, match="wrong"):
        rendering_from({"wrong": 1}, "run.json")
