"""Prompts of a model's own: whole, different, by the seed, and none from a model without any."""

import pytest
from loratomy.core.model.subject import Subject
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rendering.rendering import Rendering
from loratomy.evaluation import user_turns as module
from loratomy.evaluation.generation import generate
from loratomy.evaluation.user_turns import user_turns

from .. import tiny

LIKE = ["what is the red house", "who was king"]


def turns(on, count=12, like=LIKE, seed=0):
    return user_turns(on, count, like, seed=seed, batch_tokens=4096)


@pytest.fixture(scope="module")
def subject():
    return tiny.subject()


def test_they_are_whole_different_and_as_the_seed_says(subject):
    found = turns(subject)
    assert 3 < len(found) == len(set(found)) and not set(found) & set(LIKE)
    special = set(tiny.SPECIAL[:4])
    for text in found:
        ids = subject.renderer.prompt_ids(text)
        assert text.split() and not set(text.split()) & special
        assert subject.renderer.tokenizer.decode(ids).count("<end>") == 1  # the template's own
    assert turns(subject) == found != turns(subject, seed=1)
    assert turns(subject, count=0) == []
    again = turns(subject, like=[*LIKE, *found])
    assert not set(again) & set(found)


def test_the_model_goes_on_from_where_a_users_text_begins(subject, monkeypatch):
    seen = []

    def spied(*args, **options):
        seen.append((args[1], args[2]))
        return generate(*args, **options)

    monkeypatch.setattr(module, "generate", spied)
    turns(subject, seed=3)
    (prompts, decoding), (begun, other) = seen
    words = tiny.tokenizer().convert_ids_to_tokens
    assert [words(ids) for ids in prompts] == [["<s>", "user", ":"]]
    assert (decoding.temperature, decoding.samples, decoding.seed) == (1.0, 12, 3)
    starts = sorted(" ".join(words(ids)[3:]) for ids in begun)
    assert starts == sorted(
        ["what", "what is", "what is the", "what is the red", "who", "who was", "who was king"]
    )
    assert (other.temperature, other.samples, other.seed) == (1.0, 2, 3)  # 12 from 7 starts
    seen.clear()
    turns(subject, like=[])
    ((_, decoding),) = seen  # nothing to begin with
    assert decoding.samples == 24


def test_prompts_that_begin_like_peoples_are_among_them(subject):
    found = turns(subject, count=150)
    begun = [text for text in found if text.split()[0] in ("what", "who")]
    assert len(begun) > len(found) / 8  # of 53 words 2 by chance


def test_a_model_that_never_learned_prompts_gives_none(subject, monkeypatch):
    assert turns(subject)
    monkeypatch.setattr(module, "STRANGE", -9.0)
    assert turns(subject) == []
    assert turns(subject, like=[])  # nothing to compare with


@pytest.mark.parametrize(
    ("template", "some"), [("user : {prompt} answer :", True), ("{prompt}", False)]
)
def test_plain_forms(template, some):
    model = tiny.subject()
    renderer = Renderer(tiny.tokenizer(), Rendering(template=template, begin="none"))
    on = Subject(model.model, renderer, model.family, "tiny")
    found = turns(on)
    assert bool(found) == some
    assert not any("answer :" in text for text in found)
