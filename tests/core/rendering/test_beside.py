"""What lies beside an adapter: read as text and data, else left out with a word."""

import json
import shutil

import pytest
from loratomy.core.model.loading import load_subject
from loratomy.core.rendering.beside import read_beside

JINJA = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def put(folder, **files):
    for name, body in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(body if isinstance(body, str) else json.dumps(body), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "where"),
    [
        ({"chat_template__jinja": JINJA}, "chat_template.jinja"),
        ({"chat_template__jinja": "\ufeff" + JINJA}, "chat_template.jinja"),
        ({"chat_template__json": {"chat_template": JINJA}}, "chat_template.json"),
        ({"tokenizer_config__json": {"chat_template": JINJA}}, "tokenizer_config.json"),
        (
            {
                "tokenizer_config__json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "tools"},
                        {"name": "default", "template": JINJA},
                    ]
                }
            },
            "tokenizer_config.json",
        ),
    ],
)
def test_a_template_wherever_trainers_leave_it(tmp_path, files, where):
    found = read_beside(put(tmp_path, **files))
    assert (found.template, found.where, found.refused) == (JINJA, where, ())


def test_special_tokens_and_ends(tmp_path):
    put(
        tmp_path,
        special_tokens_map__json={"eos_token": {"content": "<old>"}, "pad_token": "<pad>"},
        tokenizer_config__json={"eos_token": "<|im_end|>", "bos_token": None},
        generation_config__json={"eos_token_id": [7, 9]},
    )
    found = read_beside(tmp_path)
    assert found.specials == {"eos_token": "<|im_end|>", "pad_token": "<pad>"}
    assert found.end_ids == (7, 9)
    assert (found.template, found.where) == ("", "")


def test_nothing_beside(tmp_path):
    found = read_beside(tmp_path)
    assert (found.template, found.specials, found.end_ids, found.refused) == ("", {}, (), ())


def test_what_is_not_what_its_name_says_is_left_out_with_a_word(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(JINJA)
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "chat_template.jinja").symlink_to(secret)
    put(folder, tokenizer_config__json="[" * 100_000, generation_config__json="[1]")
    found = read_beside(folder)
    assert found.template == "" and len(found.refused) == 3
    lines = "\n".join(found.refused)
    assert "chat_template.jinja beside the adapter is left out: it is a link out of its" in lines
    assert "tokenizer_config.json" in lines and "generation_config.json" in lines


@pytest.mark.parametrize("listed", [7, [], ["x"], [{"name": "tool_use", "template": JINJA}]])
def test_a_template_that_is_none(tmp_path, listed):
    found = read_beside(put(tmp_path, tokenizer_config__json={"chat_template": listed}))
    assert found.template == "" and "neither a text nor a list" in found.refused[0]
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert "chat_template.jinja" in read_beside(tmp_path).refused[0]


def test_a_cached_repository_keeps_its_files_as_links_into_its_blobs(tmp_path):
    cache = tmp_path / "models--owner--name"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text(JINJA)
    (snapshot / "chat_template.jinja").symlink_to("../../blobs/1")
    assert read_beside(snapshot).template == JINJA


def test_a_base_whose_template_lies_as_processors_save_it(tiny_base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    found = load_subject(str(folder), device="cpu").renderer
    assert found.text("Who?") == load_subject(str(tiny_base), device="cpu").renderer.text("Who?")
