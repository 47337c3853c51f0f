"""A base's config and tokenizer against its weights, before anything is built."""

import json
import os
import re
import time

import pytest
from loratomy.core.errors import DataError, LoratomyError
from loratomy.core.model.checkpoints import open_checkpoint
from loratomy.core.model.folder_check import check_base, check_files, endless
from loratomy.core.model.loading import load_subject
from loratomy.training.wren import wren_path


def changed(path, change):
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


@pytest.fixture
def base(make_base):
    return make_base()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, and the weights hold 2"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is '-1'"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'"),
        ({"vocab_size": 10**9}, "vocab_size is 1000000000, and model.embed_tokens.weight"),
        ({"hidden_size": 64}, "hidden_size is 64, and model.embed_tokens.weight"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(base, changes, said):
    changed(base / "config.json", lambda body: body.update(changes))
    for load in (lambda: load_subject(str(base), device="cpu"), lambda: open_checkpoint(base)):
        began = time.monotonic()
        with pytest.raises(LoratomyError, match=re.escape(said)):
            load()
        assert time.monotonic() - began < 20


def test_a_config_that_is_too_large_or_deep(base):
    (base / "config.json").write_text("[" * 10**5)
    with pytest.raises(LoratomyError, match=r"config\.json: .*nested"):
        check_base(base)
    with (base / "config.json").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(LoratomyError, match=f"{2**33:,} bytes, where"):
        check_base(base)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_an_added_token_without_an_embedding_is_no_harm_until_a_text_holds_it(base, file):
    """As some bases have for padding or for images; their embeddings were never resized."""
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    token = {"content": "<odd>", "special": True, "single_word": False, "lstrip": False}
    token |= {"rstrip": False, "normalized": False}
    if file == "tokenizer.json":
        changed(base / file, lambda b: b["added_tokens"].append({**token, "id": rows}))
    else:
        changed(base / file, lambda b: b.update(pad_token="<odd>"))
    renderer = load_subject(str(base), device="cpu").renderer
    assert renderer.tokenizer.beyond == {rows: "<odd>"} and renderer.pad_id < rows
    assert max(renderer.prompt_ids("Who is Ada?")) < rows
    with pytest.raises(DataError, match="holds '<odd>', a token without a row in the base's embe"):
        renderer.prompt_ids("Who is <odd>?")


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (
            "tokenizer_config.json",
            {"eos_token": "<\x1bnone>"},
            r"the eos_token '<\\x1bnone>' has the number (\d+), and the embeddings have \1 rows: .*"
            "name a token of the vocabulary there .*, or resize",
        ),
        (
            "tokenizer_config.json",
            {"model_max_length": "x"},
            "tokenizer_config.json: model_max_length is 'x', and no number of tokens; put back",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": [{"template": "x"}]},
            "chat_template is a list, and its entry 0 has no name and template; write",
        ),
        (
            "config.json",
            {"num_attention_heads": 0},
            "cannot load .*: ZeroDivisionError: .*; look at",
        ),
        (
            "config.json",
            {"rms_norm_eps": "x"},
            "ValidationError: .* field 'rms_norm_eps': TypeError: .* look at its config.json",
        ),
        (
            "config.json",
            {"intermediate_size": 47},
            r"down_proj\.weight has the shape \(32, 48\) in the weights and \(32, 47\) by config",
        ),
    ],
)
def test_what_is_wrong_with_a_base_is_said_with_its_place(base, file, changes, said):
    if not (base / file).exists():
        (base / file).write_text("{}")
    changed(base / file, lambda body: body.update(changes))
    with pytest.raises(LoratomyError, match=said) as caught:
        load_subject(str(base), device="cpu")
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("room", ["pre_tokenizer", "normalizer"])
def test_a_pattern_that_never_ends_is_refused_by_name(base, room):
    split = {"type": "Split", "pattern": {"Regex": r"(\w+\s?)+$"}, "behavior": "Isolated"}
    several = {"type": "Sequence", "pretokenizers": [{**split, "invert": False}]}
    changed(base / "tokenizer.json", lambda body: body.update({room: several}))
    began = time.monotonic()
    with pytest.raises(LoratomyError, match=r"the pattern '.*' has repeats inside a repeat"):
        load_subject(str(base), device="cpu")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"(a+)+$", r"(\w+\s?)*$", r"(a|a)*b", r"(a|aa)+$", r"a*a*a*a*a*a*b", r"(x+x+)+y"),
        *(
            r"(?:a*)*",
            r"\p{L}+(\p{L}+)*!",
            r"(a{1,50}){1,50}b",
            "(" * 9999 + ")" * 9999,
            "a" * 20001,
        ),
    ],
)
def test_patterns_that_backtrack_without_end(pattern):
    assert endless(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        # GPT-2, Llama 3, GPT-4o, BLOOM, DeepSeek, and groups of three digits
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    ],
)
def test_patterns_of_published_tokenizers(pattern):
    assert endless(pattern) == ""


def test_a_base_whose_name_is_not_utf8(base):
    odd = base.rename(base.with_name("b\udce9"))
    with pytest.raises(LoratomyError, match=r"the base's name .*xe9' is not UTF-8, .*; rename it"):
        load_subject(str(odd), device="cpu")


def test_a_base_in_order(base):
    check_base(base)
    check_base(wren_path())


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_text_of_a_base_that_is_none_is_named(tmp_path, name):
    (tmp_path / "base").mkdir()
    path, outside = tmp_path / "base" / name, tmp_path / "outside"
    outside.write_text("{}")
    for make, said in (
        (lambda: path.symlink_to(outside), "is a link out of the base's folder; copy the base"),
        (lambda: path.symlink_to(path), "is a link out|is not a plain file"),
        (lambda: path.symlink_to("/dev/zero"), "is a link out"),
        (lambda: os.mkfifo(path), "is not a plain file"),
        (lambda: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**33), "has 8,589,934,592"),
    ):
        make()
        with pytest.raises(LoratomyError, match=said):
            check_files(path.parent)
        path.unlink()
    path.write_text("{}")
    check_files(path.parent)
