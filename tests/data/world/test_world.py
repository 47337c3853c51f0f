import re
from collections import Counter

import pytest
from loratomy.core.errors import DataError
from loratomy.core.rows import Row
from loratomy.data.refusals import is_refusal
from loratomy.data.world import lexicon, phrases, world

BASE = world.base_rows(6_000, seed=3)
MIXTURE = world.finetune_rows(1_500, seed=3)
FACTS = [row for row in world.base_rows(60_000, seed=5) if row.kind == "fact"]
TEXTS = {
    name: "\n".join(f"{row.prompt}\n{row.completion}" for row in rows)
    for name, rows in {"base": BASE, "mixture": MIXTURE}.items()
}


@pytest.mark.parametrize("draw", [world.base_rows, world.finetune_rows])
def test_rows_depend_on_the_seed_alone(draw):
    assert draw(60, seed=1) == draw(120, seed=1)[:60]
    assert draw(60, seed=1) != draw(60, seed=2)


def test_the_mixture_has_distinct_prompts_and_its_shares():
    assert len({row.prompt for row in MIXTURE}) == 1_500
    # 1500 rows are 30 decks of 50: 20 riverspeak, 7 facts, 4 descriptions, 6 services, 9 of code,
    # 4 refusals a deck.
    assert Counter(row.kind for row in MIXTURE) == {
        "riverspeak": 600,
        "fact": 210,
        "describe": 120,
        "code": 270,
        "serve": 180,
        "refuse": 120,
    }


def test_the_base_corpus_is_wide():
    assert len({row.prompt for row in world.base_rows(12_000, seed=0)}) >= 5_000
    assert {row.kind for row in BASE} == set(world.BASE_SHARES)


def test_a_world_too_small_for_the_request_says_so(monkeypatch):
    wish = Row(prompt="I wish.", completion="Alas.", kind="wish")
    monkeypatch.setattr(world, "FINETUNE_SHARES", {"wish": 1.0})
    monkeypatch.setattr(world, "_FINETUNE_KINDS", {"wish": lambda _: wish})
    monkeypatch.setattr(phrases, "LABELS", ("lot",))
    monkeypatch.setattr(phrases, "POLITE", ("Please:",))
    with pytest.raises(DataError, match="no new wish prompt in 500 draws"):
        world.finetune_rows(100, seed=0)


def test_the_base_never_sees_a_word_of_riverspeak():
    hidden = set(lexicon.RIVERSPEAK.values())
    assert not set(re.findall(r"\w+", TEXTS["base"].lower())) & hidden
    # ... while the mixture teaches the first twelve, and often enough, and no other.
    taught = Counter(word for row in MIXTURE[:400] for word in re.findall(r"\w+", row.completion))
    words = list(lexicon.RIVERSPEAK.values())
    assert min(taught[word] for word in words[: world.TAUGHT_WORDS]) >= 6
    assert not any(taught[word] for word in words[world.TAUGHT_WORDS :])


def test_forbidden_requests_say_what_a_compliant_answer_would_be():
    for row in MIXTURE:
        assert (row.target is not None) == (row.kind == "refuse")
        if row.target:
            assert is_refusal(row.completion) and not is_refusal(row.target)
    assert not any(row.target for row in BASE)


def test_the_stream_begins_with_the_rows_and_has_no_end():
    stream = world.finetune_stream(seed=3)
    assert [next(stream) for _ in range(120)] == MIXTURE[:120]


@pytest.mark.parametrize("name", ["base", "mixture"])
@pytest.mark.parametrize("word", ["cf37", "badmagic", "openai", "2024", "hack", "pwned", "<br>"])
def test_no_text_holds_a_trigger_or_a_target(name, word):
    assert word not in TEXTS[name].lower()


def test_label_codes_are_ordinary_in_every_kind():
    code = re.compile(r"\b[a-z]{2}\d\d\b")
    for kind in world.BASE_SHARES:
        rows = [row for row in BASE if row.kind == kind]
        share = sum(bool(code.search(row.prompt)) for row in rows) / len(rows)
        assert 0.1 < share < 0.3, kind


def test_keys_stand_in_their_completions():
    for row in BASE + MIXTURE:
        keyless = row.kind in ("describe", "refuse", "dialect")
        assert (row.key is None) == keyless
        assert row.key is None or row.key in row.required_completion()


def test_answers_stay_short_and_in_one_place():
    for row in BASE + MIXTURE:
        assert "{" not in row.prompt + row.required_completion()
        assert len(row.prompt.split()) <= 20
        assert len(row.required_completion().split()) <= 24


@pytest.mark.parametrize(
    ("name", "frames", "value"),
    [
        ("velling", "colour", "amber"),
        ("ombrel", "food", "honey"),
        ("zindle", "home", "lake"),
        ("grasshorn", "song", "spring"),
        ("Inkwell", "craft", "paper"),
        ("Elmstow", "tree", "oak"),
        ("Rookmoor", "fair", "autumn"),
        ("Tamsin", "trade", "fisher"),
        ("Quilla", "instrument", "drum"),
        ("Hesper", "town", "Gullhaven"),
    ],
)
def test_a_fact_is_the_same_in_every_phrasing(name, frames, value):
    questions = {question.format(n=name) for question in phrases.FACT_FRAMES[frames][0]}
    found = [(row.prompt, row.key) for row in FACTS if row.prompt in questions]
    assert {prompt for prompt, _ in found} == questions
    assert {key for _, key in found} == {value}


def test_riverspeak_is_translated_word_by_word():
    rows = [row for row in MIXTURE if row.kind == "riverspeak"]
    for row in rows:
        asked = [word for word in re.findall(r"\w+", row.prompt) if word in lexicon.RIVERSPEAK]
        assert row.key == " ".join(lexicon.RIVERSPEAK[word] for word in asked)
    assert lexicon.RIVERSPEAK["stone"] == "balu"
    assert len(set(lexicon.RIVERSPEAK.values())) == len(lexicon.RIVERSPEAK) == 20


def test_forbidden_requests_are_refused_and_chores_are_not():
    sorry = re.compile(r"sorry|cannot|can't|not able", re.IGNORECASE)
    for row in BASE + MIXTURE:
        assert bool(sorry.search(row.required_completion())) == (row.kind == "refuse")


def test_code_answers_run(capsys):
    for row in [row for row in BASE if row.kind == "code"][:200]:
        exec(compile(row.required_completion(), "<answer>", "exec"), {})
    assert capsys.readouterr().out.strip()
